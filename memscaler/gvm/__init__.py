"""GVM: control of GPU applications like that of cgroups, tied to connections; and what can be had without GVM."""
