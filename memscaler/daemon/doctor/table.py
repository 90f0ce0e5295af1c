"""Every check. An id stays what it is: people search for it, and docs/troubleshooting.md has a section for each."""

from __future__ import annotations

from memscaler.daemon.doctor import gpus, gvm, kernel, probing, running, servers, service
from memscaler.daemon.doctor.model import DRIVER_DEADLINE_S, Check

BCC_DEADLINE_S = 25.0
LOAD_DEADLINE_S = 70.0  # the loader itself gives up after 60 s
PROBE_DEADLINE_S = 300.0
LOOK_DEADLINE_S = 15.0  # the driver and then /proc


CHECKS = (
    Check(
        "MS-KERNEL-01",
        "kernel",
        "The kernel is 4.16 or newer, on a machine type that the loader knows (x86-64, arm64, riscv64, ppc64le, "
        "s390x). It fails on older ones: they lack the tracepoint.",
        kernel.version,
    ),
    Check(
        "MS-KERNEL-02",
        "BTF",
        "The kernel describes its own structures. Without that memscaler works, but does not tell network "
        "namespaces apart (no containers), and a health check counts like any other connection.",
        kernel.btf,
    ),
    Check(
        "MS-KERNEL-03",
        "tracepoint",
        "The tracepoint `sock:inet_sock_set_state` and its description in tracefs. memscaler mounts tracefs "
        "itself where it may; in a container it may not. Only root may look there.",
        kernel.tracepoint,
    ),
    Check(
        "MS-KERNEL-04",
        "bcc",
        "A python that can import bcc: the one that runs memscaler, the distribution's `/usr/bin/python3`, or the"
        " one named by `loader_python`. bcc comes from the distribution, not from pip, and a virtual environment "
        "does not see it; that does no harm, because only the short-lived loader needs it. Kernel headers are not"
        " needed.",
        kernel.bcc,
        BCC_DEADLINE_S,
    ),
    Check(
        "MS-KERNEL-05",
        "BPF permitted",
        "Lockdown, the capabilities of this process and `kernel.perf_event_paranoid` allow loading. Without root "
        "nobody can tell what root may.",
        kernel.permitted,
    ),
    Check(
        "MS-KERNEL-06",
        "cgroup v2",
        "The root of cgroup v2 is mounted, also beside version 1. There the hook is attached that misses no "
        "connection, and the filter that hears silent ones. In a container only the host's root counts.",
        kernel.cgroup,
    ),
    Check(
        "MS-KERNEL-07",
        "ring buffer",
        "Linux 5.8 or newer can ring a bell. Older ones are polled while a GPU is parked, and wake it up to 20 ms"
        " late.",
        kernel.ring_buffer,
    ),
    Check(
        "MS-KERNEL-08",
        "socket list",
        "The kernel lists its TCP sockets (inet_diag, tcp_diag). That list decides whether a GPU is parked; "
        "without it memscaler does not start.",
        kernel.sock_diag,
    ),
    Check(
        "MS-DRIVER-01",
        "kernel module",
        "NVIDIA's kernel module is loaded, or why it is not: no card, no module. With Secure Boot an unsigned "
        "module is refused: `dmesg | grep -i nvidia` says so.",
        gpus.module,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-DRIVER-02",
        "NVML",
        "The driver's library loads and initialises. It comes with the driver, not with memscaler. In a container"
        " the devices have to be passed in (`--gpus all`).",
        gpus.library,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-DRIVER-03",
        "versions",
        "The driver's library and the kernel module have the same version. After an upgrade they do not until the"
        " module is reloaded; `memscaler release` lets go of it for that.",
        gpus.match,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-DRIVER-04",
        "NVAPI",
        "`libnvidia-api.so.1`, which forces performance states. Only cards whose memory clock cannot be locked "
        "need it, such as the P40.",
        gpus.pstates,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-GPU-01",
        "answers",
        "Every GPU that the driver counts answers. One that has fallen off the bus is lost to memscaler, the "
        "others are not.",
        gpus.answers,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-GPU-02",
        "persistence",
        "Persistence mode keeps the driver initialised while nobody uses the GPU. Without it the next server "
        "waits for seconds, and clock locks are forgotten with the last client.",
        gpus.persistence,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-GPU-03",
        "lever",
        "How the GPU would be parked, by what the driver says about it; `--probe` tries it (MS-PROBE-02). There "
        "is none in a vGPU guest and with MIG.",
        gpus.lever,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-GPU-04",
        "display",
        "No screen hangs on the GPU. One that does keeps its clocks up by itself, and may flicker when they change.",
        gpus.display,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-GPU-05",
        "left parked",
        "The journal in the runtime directory names no GPU that nobody will wake.",
        gpus.left_parked,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-SERVER-01",
        "servers",
        "The servers that listen, their GPUs, and whether each is watched. Who listens on a port is for root to know.",
        servers.listeners,
        LOOK_DEADLINE_S,
    ),
    Check(
        "MS-SERVER-02",
        "boost",
        "`CUDA_DISABLE_PERF_BOOST=1` in a server's environment, with driver 580.105.08 or newer: its clocks may "
        "fall without memscaler. It is worth a try where you can set it.",
        servers.boost,
        LOOK_DEADLINE_S,
    ),
    Check(
        "MS-SERVER-03",
        "sleepers",
        "`llama-server --sleep-idle-seconds` unloads the model but keeps the CUDA context, and most of the watts;"
        " llama-swap ends servers. Both work together with memscaler.",
        servers.sleepers,
    ),
    Check(
        "MS-RIVAL-01",
        "rivals",
        "Other programs that set clocks, such as nvidia-pstated or LACT. The driver does not tell who set a lock,"
        " so two of them undo each other's; memscaler steps back for `conflict_pause` when it notices.",
        servers.others,
    ),
    Check(
        "MS-GVM-01",
        "GVM",
        "GVM's driver, which limits the GPU memory of a process and lets others go first. Without it all else works; "
        "it fails only if a `[[gpuctl]]` rule wants what only GVM has. Only root may look there.",
        gvm.driver,
        LOOK_DEADLINE_S,
    ),
    Check(
        "MS-GVM-02",
        "what can be set",
        "What can be told of the processes on GPUs and set on them here, and by what: GVM's driver, cgroup v2, "
        "signals, priorities. It fails where a `[[gpuctl]]` rule wants what is not possible here.",
        gvm.abilities,
        LOOK_DEADLINE_S,
    ),
    Check(
        "MS-GVM-03",
        "gpuctl rules",
        "The arbiter runs, the process beside the daemon that does what `[[gpuctl]]` rules say, and nothing keeps a "
        "rule from it.",
        gvm.arbiter,
    ),
    Check(
        "MS-CONFIG-01",
        "configuration",
        "What `memscaler config check` says about the file and this shell's environment.",
        service.configuration,
    ),
    Check(
        "MS-CONFIG-02",
        "who may write it",
        "The file and its folder belong to root, or to who runs memscaler, and nobody else may write them. What "
        "it says decides what root does, so `run` refuses it otherwise.",
        service.trusted,
    ),
    Check(
        "MS-CONFIG-03",
        "variables",
        "Variables that begin with `MEMSCALER_` and that nobody reads, in this shell and in the unit: one is misspelt.",
        service.variables,
    ),
    Check(
        "MS-CONFIG-04",
        "named GPUs",
        "Every GPU that the configuration names is there.",
        gpus.named,
        DRIVER_DEADLINE_S,
    ),
    Check(
        "MS-CONFIG-05",
        "deeper sleep",
        "`[[stage]]`, `[[gateway]]` and `[suspend]` tables go together: a server that a stage stops has a gateway "
        "here that brings it back, and nothing waits for what cannot come.",
        service.deeper,
    ),
    Check(
        "MS-UNIT-01",
        "unit",
        "memscaler.service is installed once, starts a program that is there, is enabled and active, and has the "
        "drop-ins that the configuration needs. A file of it in `/etc` hides that of the package, also after an "
        "upgrade.",
        service.installed,
    ),
    Check(
        "MS-UNIT-02",
        "runtime directory",
        "`/run/memscaler` is root's, and the unit keeps it and runs `memscaler restore` when it ends.",
        service.directory,
    ),
    Check(
        "MS-UNIT-03",
        "group",
        "The group memscaler, whose members may read the status. The unit does not start without it.",
        service.group,
    ),
    Check(
        "MS-UNIT-04",
        "state directory",
        "`/var/lib/memscaler` is root's, can be written to, and its history can be read. Without it GPUs are governed "
        'all the same; `memscaler report` and `idle_after = "auto"` lack what they are made from.',
        service.history,
    ),
    Check(
        "MS-UNIT-05",
        "gateway",
        "Where there are `[[gateway]]` tables: memscaler-gateway.service is installed, starts a program that is there, "
        "is enabled and active. A gateway that was started by hand is none of it.",
        service.gateway,
    ),
    Check(
        "MS-DAEMON-01",
        "daemon",
        "A daemon answers, is of the version that is installed, and governs.",
        running.runs,
    ),
    Check(
        "MS-DAEMON-02",
        "its GPUs",
        "It has given up no GPU, and nobody else moves the clocks of one that it has parked.",
        running.states,
    ),
    Check(
        "MS-DAEMON-03",
        "its remarks",
        "It waits for no server or container that was named, has no notices, and each server that slept came back.",
        running.remarks,
    ),
    Check(
        "MS-DAEMON-04",
        "guardian",
        "The process beside the daemon that wakes every GPU if the daemon is killed.",
        running.guardian,
    ),
    Check(
        "MS-METRICS-01",
        "metrics",
        "Something answers where the metrics should be, and it is memscaler.",
        running.metrics,
    ),
    Check(
        "MS-PROBE-01",
        "loading",
        "Only with `--probe`: the real programs are loaded into the kernel by the real loader, attached, and "
        "taken out again. It does not disturb a running daemon.",
        kernel.loads,
        LOAD_DEADLINE_S,
        probe=True,
    ),
    Check(
        "MS-PROBE-02",
        "park and wake",
        "Only with `--probe`: each GPU that the configuration governs (all if it watches nothing) is parked and woken "
        "once, and its clocks are read back. Only as root, where no daemon governs, the GPU is idle and nobody is "
        "connected to its servers; the first sign of work, the first client and Ctrl-C wake it at once. Clocks that "
        "somebody else has locked there are reset. What is about to be done is in the journal first, and a guardian "
        "watches, so that no way of dying or of standing still leaves it parked.",
        probing.park_and_wake,
        PROBE_DEADLINE_S,
        probe=True,
    ),
)
BY_ID = {check.id: check for check in CHECKS}
