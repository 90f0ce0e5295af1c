"""The metrics as a table: names, types, labels and meanings. A frozen contract, held by a golden file.

Every series about a GPU carries the labels that other exporters' series can be joined on: `UUID` as in NVML (DCGM),
`gpu` the index, `pci_bus_id`, `model_name`, `hostname`. DCGM's own spelling `modelName` is refused by promtool's
linter, and nobody joins on it. What changes with an update (driver version, lever) is only in memscaler_gpu_info.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GPU = ("gpu", "UUID", "pci_bus_id", "model_name", "hostname")
PORT = ("port", "scope")
SERVER = ("server",)
ASLEEP = ("server", "port", "scope")
RULE = ("rule",)
APPLICATION = ("pid", "gpu", "UUID")
HOST = "memscaler_host_info"  # the only one whose labels an operator may add to

# Upper bounds in seconds: from the kernel's timestamp of a connection to the return of the driver call.
WAKE_LATENCY_BUCKETS_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1.0, 10.0)

# From the request to leave a deeper stage until it is left: a server that wakes takes a second, one that is started
# loads its model.
STAGE_WAKE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Kind(StrEnum):
    """The type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    INFO = "info"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


SPECS = (
    Spec("memscaler_up", Kind.GAUGE, "1: the governor answers."),
    Spec("memscaler_build_info", Kind.INFO, "The version that runs.", ("version",)),
    Spec(
        HOST,
        Kind.INFO,
        "This machine, with the labels of the setting `labels`, to join on.",
        ("hostname",),
    ),
    Spec("memscaler_start_time_seconds", Kind.GAUGE, "Start of the governor, in seconds since 1970."),
    Spec("memscaler_dry_run", Kind.GAUGE, "1: decisions are only logged and no GPU is touched."),
    Spec("memscaler_guardian_restarts_total", Kind.COUNTER, "Times the guardian process had to be started again."),
    Spec(
        "memscaler_history_write_failures_total",
        Kind.COUNTER,
        "Times the history could not be written; what memory holds is tried again.",
    ),
    Spec(
        "memscaler_ports_waiting",
        Kind.GAUGE,
        "Ports of the configuration that cannot be watched now: their container, unit or server is not there.",
    ),
    Spec("memscaler_paused", Kind.GAUGE, "1: an operator keeps every GPU awake."),
    Spec("memscaler_released", Kind.GAUGE, "1: the driver is let go of, and nothing is governed."),
    # ---- per GPU
    Spec(
        "memscaler_gpu_info",
        Kind.INFO,
        "A governed GPU, with what may change with an update. uuid: as nvidia_gpu_exporter writes it; gpu_uuid: as "
        "Kepler does.",
        (*GPU, "uuid", "gpu_uuid", "driver_version", "lever"),
    ),
    Spec("memscaler_gpu_state", Kind.GAUGE, "1 for the state that the GPU is in, else 0.", (*GPU, "state")),
    Spec("memscaler_gpu_holds", Kind.GAUGE, "What keeps the GPU awake besides its connections.", GPU),
    Spec("memscaler_gpu_conflict", Kind.GAUGE, "1: another program has changed the clocks of this GPU.", GPU),
    Spec("memscaler_gpu_state_seconds_total", Kind.COUNTER, "Time spent in each state.", (*GPU, "state")),
    Spec("memscaler_gpu_state_energy_joules_total", Kind.COUNTER, "Energy used in each state.", (*GPU, "state")),
    Spec("memscaler_gpu_transitions_total", Kind.COUNTER, "Changes to each state.", (*GPU, "to")),
    Spec("memscaler_gpu_power_watts", Kind.GAUGE, "Power drawn at the last sample.", GPU),
    Spec(
        "memscaler_gpu_energy_joules_total",
        Kind.COUNTER,
        "Energy used since the governor started. source: counter (the card's own) or integrated (from power samples).",
        (*GPU, "source"),
    ),
    Spec(
        "memscaler_gpu_energy_saved_joules_total",
        Kind.COUNTER,
        "Estimate: while parked, memscaler_gpu_energy_baseline_watts minus the power drawn, over time.",
        GPU,
    ),
    Spec(
        "memscaler_gpu_energy_baseline_watts",
        Kind.GAUGE,
        "Power of this very GPU, idle with its clocks up, as measured before parks; what the saving is counted from.",
        GPU,
    ),
    Spec(
        "memscaler_gpu_idle_after_seconds",
        Kind.GAUGE,
        'Quiet time after which the GPU is parked; moves with idle_after = "auto".',
        GPU,
    ),
    Spec("memscaler_gpu_mem_clock_hertz", Kind.GAUGE, "Memory clock at the last sample.", GPU),
    Spec("memscaler_gpu_graphics_clock_hertz", Kind.GAUGE, "Graphics clock at the last sample.", GPU),
    Spec("memscaler_gpu_pstate", Kind.GAUGE, "Performance state at the last sample: 0 fastest, 15 slowest.", GPU),
    Spec("memscaler_gpu_utilization_ratio", Kind.GAUGE, "Utilisation at the last sample, 0 to 1.", GPU),
    Spec("memscaler_gpu_temperature_celsius", Kind.GAUGE, "Temperature at the last sample.", GPU),
    Spec("memscaler_gpu_last_collect_success", Kind.GAUGE, "1: the last sample of this GPU could be read.", GPU),
    Spec("memscaler_gpu_sample_age_seconds", Kind.GAUGE, "Age of the last sample of this GPU.", GPU),
    Spec(
        "memscaler_reset_latency_seconds",
        Kind.HISTOGRAM,
        "From the kernel's timestamp of the connection to the return of the driver call that woke the GPU.",
        GPU,
    ),
    Spec(
        "memscaler_errors_total",
        Kind.COUNTER,
        "Driver calls that failed, by operation; conflict: another program has changed the clocks of a parked GPU.",
        (*GPU, "op"),
    ),
    # ---- per port
    Spec("memscaler_port_connections", Kind.GAUGE, "Open connections.", PORT),
    Spec("memscaler_port_accepts_total", Kind.COUNTER, "Connections accepted.", PORT),
    Spec("memscaler_port_closes_total", Kind.COUNTER, "Connections that ended.", PORT),
    Spec("memscaler_port_ignored_total", Kind.COUNTER, "Connections not counted, from ignored clients.", PORT),
    Spec("memscaler_port_silent_connections", Kind.GAUGE, "Open connections on which nothing is said.", PORT),
    Spec(
        "memscaler_port_touches_total",
        Kind.COUNTER,
        "Connections and requests too short and small to be work: health checks, scrapes.",
        PORT,
    ),
    Spec(
        "memscaler_port_info",
        Kind.INFO,
        "What was recognised behind a port, and when it counts as quiet.",
        (*PORT, "server", "quiet"),
    ),
    Spec("memscaler_port_idle_seconds", Kind.GAUGE, "Time since the last activity; 0 while there is work.", PORT),
    Spec("memscaler_port_gpu_info", Kind.INFO, "A GPU behind a port.", (*PORT, "gpu", "UUID")),
    Spec("memscaler_doorbell_rings_total", Kind.COUNTER, "Times a connection to a parked GPU rang.", PORT),
    Spec("memscaler_connections_overflow_total", Kind.COUNTER, "Connections that the full set had no room for.", PORT),
    Spec(
        "memscaler_reconcile_corrections_total",
        Kind.COUNTER,
        "Connections that comparing with sock_diag had to add to the set or remove from it.",
        (*PORT, "kind"),
    ),
    # ---- per server that a supervisor keeps running
    Spec(
        "memscaler_server_info",
        Kind.INFO,
        "A server that a supervisor keeps running, its port, and the user whose supervisor that is.",
        (*SERVER, "port", "user"),
    ),
    Spec("memscaler_server_state", Kind.GAUGE, "1 for the state that the server is in, else 0.", (*SERVER, "state")),
    Spec(
        "memscaler_server_restarts_total",
        Kind.COUNTER,
        "Times its supervisor has started it again; 0 again when an operator starts it.",
        SERVER,
    ),
    # ---- deeper stages, where any is configured
    Spec("memscaler_sleeper_up", Kind.GAUGE, "1: the process that takes servers down the ladder runs."),
    Spec(
        "memscaler_stage",
        Kind.GAUGE,
        "1 for the stage that the server is in, enters or leaves, else 0.",
        (*ASLEEP, "stage"),
    ),
    Spec(
        "memscaler_stage_rung",
        Kind.GAUGE,
        "1 for how the server stands to its stage, else 0; stuck: it could not be brought back.",
        (*ASLEEP, "rung"),
    ),
    Spec("memscaler_stage_seconds_total", Kind.COUNTER, "Time in the stage.", (*ASLEEP, "stage")),
    Spec("memscaler_stage_entered_total", Kind.COUNTER, "Times the stage was entered.", (*ASLEEP, "stage")),
    Spec(
        "memscaler_stage_failures_total",
        Kind.COUNTER,
        "Times the stage could not be entered; the server was brought back.",
        (*ASLEEP, "stage"),
    ),
    Spec(
        "memscaler_stage_wake_seconds",
        Kind.HISTOGRAM,
        "How long leaving the stage took.",
        (*ASLEEP, "stage"),
    ),
    Spec(
        "memscaler_gpu_stage_seconds_total",
        Kind.COUNTER,
        "Time in which all servers of the GPU were in a stage, by the shallowest of theirs.",
        (*GPU, "stage"),
    ),
    Spec(
        "memscaler_gpu_stage_energy_joules_total",
        Kind.COUNTER,
        "Energy that the GPU used in that time, as far as it is known.",
        (*GPU, "stage"),
    ),
    Spec(
        "memscaler_gpu_stage_saved_joules",
        Kind.GAUGE,
        "Estimate, since the start: what the stage spared beyond parking alone, less what entering and leaving took.",
        (*GPU, "stage"),
    ),
    Spec("memscaler_suspend_rung", Kind.GAUGE, "1 for how the machine stands to suspend, else 0.", ("rung",)),
    Spec("memscaler_suspend_wanted", Kind.GAUGE, "1: the machine is to be suspended when it is quiet."),
    Spec("memscaler_suspend_blockers", Kind.GAUGE, "What keeps the machine up now."),
    Spec("memscaler_suspend_never", Kind.GAUGE, "1: an operator does not want the machine to be suspended."),
    Spec(
        "memscaler_suspend_alarm_timestamp_seconds",
        Kind.GAUGE,
        "When the machine wakes by itself, in seconds since 1970.",
    ),
    Spec("memscaler_suspend_entered_total", Kind.COUNTER, "Times the machine was suspended."),
    Spec("memscaler_suspend_failures_total", Kind.COUNTER, "Times it was to be suspended and was not."),
    Spec(
        "memscaler_suspend_wake_seconds",
        Kind.HISTOGRAM,
        "How long it took from a resume of the machine until every server was back.",
    ),
    Spec("memscaler_suspend_asleep_seconds_total", Kind.COUNTER, "Time in which the machine slept."),
    # ---- other programs of the GPUs, where a rule is configured or GVM's driver is there
    Spec("memscaler_arbiter_up", Kind.GAUGE, "1: the process that sets things on other programs of the GPUs runs."),
    Spec("memscaler_gpuctl_rule_active", Kind.GAUGE, "1: the rule is in force. when: busy or quiet.", (*RULE, "when")),
    Spec("memscaler_gpuctl_rule_seconds_total", Kind.COUNTER, "Time in which the rule was in force.", RULE),
    Spec(
        "memscaler_gpuctl_controlled",
        Kind.GAUGE,
        "What the rule has set now, by what (knob) and how (means), counted by process and GPU.",
        (*RULE, "knob", "means"),
    ),
    Spec(
        "memscaler_gpuctl_frozen_seconds",
        Kind.GAUGE,
        "How long that process is frozen which the rule has frozen the longest; 0: none is.",
        RULE,
    ),
    Spec(
        "memscaler_gpuctl_actions_total",
        Kind.COUNTER,
        "What the rule did to processes. outcome: applied, released or failed.",
        (*RULE, "outcome"),
    ),
    Spec(
        "memscaler_gpuctl_last_act_seconds",
        Kind.GAUGE,
        "From a client's coming until all was set, the last time.",
        RULE,
    ),
    Spec(
        "memscaler_gvm_memory_current_bytes",
        Kind.GAUGE,
        "Managed device memory of the process, as GVM tells. gpu: gvm8 where only GVM's number is known.",
        APPLICATION,
    ),
    Spec(
        "memscaler_gvm_memory_limit_bytes",
        Kind.GAUGE,
        "The most of it that stays on the GPU; +Inf: no limit.",
        APPLICATION,
    ),
    Spec("memscaler_gvm_swap_bytes", Kind.GAUGE, "What of it is in the host's memory.", APPLICATION),
    Spec("memscaler_gvm_compute_priority", Kind.GAUGE, "0 to 15; lower is higher, 8 is usual.", APPLICATION),
    Spec("memscaler_gvm_compute_freeze", Kind.GAUGE, "1: its work is kept off the GPU.", APPLICATION),
    Spec(
        "memscaler_gvm_kernels_submitted_total",
        Kind.COUNTER,
        "CUDA kernels that it launched; without CUDA graphs, and 0 without GVM's layer in the process.",
        APPLICATION,
    ),
    Spec("memscaler_gvm_kernels_ended_total", Kind.COUNTER, "Those that have ended.", APPLICATION),
    Spec("memscaler_gvm_kernels_pending", Kind.GAUGE, "Those that have not; 0 is no proof of idleness.", APPLICATION),
    # ---- the kernel side
    Spec("memscaler_reconciles_total", Kind.COUNTER, "Comparisons of the set with sock_diag."),
    Spec(
        "memscaler_listeners_changed_total",
        Kind.COUNTER,
        "Listening sockets here that came or went: memscaler looks for servers then, twice a second at most.",
    ),
    Spec(
        "memscaler_bpf_hook_attached",
        Kind.GAUGE,
        "1: this hook is attached; data only while a GPU is parked beside an open connection.",
        ("hook",),
    ),
    Spec(
        "memscaler_bpf_recursion_misses_total",
        Kind.COUNTER,
        "Events that the kernel did not hand to this hook (healed by the other hook, or by reconciling).",
        ("hook",),
    ),
)

BY_NAME = {spec.name: spec for spec in SPECS}
