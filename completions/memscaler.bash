# Completion of memscaler for bash. Made by tools/completions.py from the command line itself; starts no process.
# shellcheck shell=bash

# What a value or an argument may be: words, and what the shell finds itself.
_memscaler_value() {
    case "$1" in
    'run -p' | 'run --port') kind=words words='' ;;
    'run --idle-after') kind=words words='30s 5m 30m 2h' ;;
    'run --quiet') kind=words words='no-connections no-traffic' ;;
    'run --ignore') kind=words words='' ;;
    'run --touch') kind=words words='off 250ms 1s' ;;
    'run --config') kind=file words='' ;;
    'run --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'run --lever') kind=words words='auto memory-clock graphics-clock pstate' ;;
    'run --metrics') kind=words words='off 127.0.0.1:9823' ;;
    'run --runtime-dir') kind=directory words='' ;;
    'run --log-format') kind=words words='auto console json' ;;
    'run --log-level') kind=words words='debug info warning error' ;;
    'run --loader-python') kind=file words='' ;;
    'serve -m' | 'serve --model' | 'serve --model-path') kind=file words='' ;;
    'serve --host') kind=words words='' ;;
    'serve -p' | 'serve --port') kind=words words='' ;;
    'serve -c' | 'serve --n-ctx') kind=words words='' ;;
    'serve --parallel') kind=words words='' ;;
    'serve --cache-type-k') kind=words words='f16 q8_0 q4_0' ;;
    'serve --cache-type-v') kind=words words='f16 q8_0 q4_0' ;;
    'serve --n-batch') kind=words words='' ;;
    'serve --n-ubatch') kind=words words='' ;;
    'serve --mmproj') kind=file words='' ;;
    'serve --alias') kind=words words='' ;;
    'serve --api-key') kind=words words='' ;;
    'serve --devices') kind=gpu words='' ;;
    'serve --reserve-mib') kind=words words='' ;;
    'serve --idle-after') kind=words words='30s 5m 30m 2h' ;;
    'serve --log') kind=file words='' ;;
    'serve --log-level') kind=words words='debug info warning error' ;;
    'serve --config') kind=file words='' ;;
    'serve --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'serve --runtime-dir') kind=directory words='' ;;
    serve) kind=file words='' ;;
    'gpus --config') kind=file words='' ;;
    'gpus --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'gpus --runtime-dir') kind=directory words='' ;;
    'ports -p' | 'ports --port') kind=words words='' ;;
    'ports --config') kind=file words='' ;;
    'ports --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'ports --runtime-dir') kind=directory words='' ;;
    'restore --runtime-dir') kind=directory words='' ;;
    'restore --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'status -w' | 'status --watch') kind=maybe words='30s 5m 30m 2h' ;;
    'status --runtime-dir') kind=directory words='' ;;
    status) kind=gpu words='' ;;
    'top --runtime-dir') kind=directory words='' ;;
    'verify --runtime-dir') kind=directory words='' ;;
    verify) kind=gpu words='' ;;
    'report --since') kind=words words='24h 7d 30d' ;;
    'report --price') kind=words words='' ;;
    'report --html') kind=file words='' ;;
    'report --plots') kind=directory words='' ;;
    'report --state-dir') kind=directory words='' ;;
    'report --runtime-dir') kind=directory words='' ;;
    'report --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    report) kind=gpu words='' ;;
    'hold --for') kind=words words='30s 5m 30m 2h' ;;
    'hold --reason') kind=words words='' ;;
    'hold --runtime-dir') kind=directory words='' ;;
    hold) kind=gpu words='' ;;
    'unhold --id') kind=words words='' ;;
    'unhold --runtime-dir') kind=directory words='' ;;
    unhold) kind=gpu words='' ;;
    'park --runtime-dir') kind=directory words='' ;;
    park) kind=gpu words='' ;;
    'pause --for') kind=words words='30s 5m 30m 2h' ;;
    'pause --reason') kind=words words='' ;;
    'pause --runtime-dir') kind=directory words='' ;;
    'resume --runtime-dir') kind=directory words='' ;;
    'release --reason') kind=words words='' ;;
    'release --runtime-dir') kind=directory words='' ;;
    'wake --runtime-dir') kind=directory words='' ;;
    wake) kind=words words='' ;;
    'sleep --stage') kind=words words='server-sleep checkpoint stop-server' ;;
    'sleep --runtime-dir') kind=directory words='' ;;
    sleep) kind=words words='' ;;
    'suspend now --wake-at') kind=words words='30s 5m 30m 2h' ;;
    'suspend now --wake-in') kind=words words='30s 5m 30m 2h' ;;
    'suspend now --runtime-dir') kind=directory words='' ;;
    'suspend never --for') kind=words words='30s 5m 30m 2h' ;;
    'suspend never --reason') kind=words words='' ;;
    'suspend never --runtime-dir') kind=directory words='' ;;
    'suspend allow --runtime-dir') kind=directory words='' ;;
    'suspend status --runtime-dir') kind=directory words='' ;;
    'reload --runtime-dir') kind=directory words='' ;;
    'gateway --listen') kind=words words='' ;;
    'gateway --to') kind=words words='' ;;
    'gateway --name') kind=words words='' ;;
    'gateway --server') kind=words words='' ;;
    'gateway --mac') kind=words words='' ;;
    'gateway --wake-to') kind=words words='' ;;
    'gateway --protocol') kind=words words='http tcp' ;;
    'gateway --ready') kind=words words='off /health' ;;
    'gateway --wait') kind=words words='30s 5m 30m 2h' ;;
    'gateway --wake-timeout') kind=words words='30s 5m 30m 2h' ;;
    'gateway --no-wake-path') kind=words words='' ;;
    'gateway --no-wake-from') kind=words words='' ;;
    'gateway --metrics') kind=words words='off 127.0.0.1:9824' ;;
    'gateway --drain') kind=words words='30s 5m 30m 2h' ;;
    'gateway --config') kind=file words='' ;;
    'gateway --runtime-dir') kind=directory words='' ;;
    'gateway --log-format') kind=words words='auto console json' ;;
    'gateway --log-level') kind=words words='debug info warning error' ;;
    'servers list --user') kind=words words='' ;;
    'servers list --config') kind=file words='' ;;
    'servers list --runtime-dir') kind=directory words='' ;;
    'servers show --user') kind=words words='' ;;
    'servers show --runtime-dir') kind=directory words='' ;;
    'servers show') kind=words words='' ;;
    'servers logs -n' | 'servers logs --lines') kind=words words='' ;;
    'servers logs --user') kind=words words='' ;;
    'servers logs --runtime-dir') kind=directory words='' ;;
    'servers logs') kind=words words='' ;;
    'servers apply --user') kind=words words='' ;;
    'servers apply --runtime-dir') kind=directory words='' ;;
    'servers reload --user') kind=words words='' ;;
    'servers reload --runtime-dir') kind=directory words='' ;;
    'servers start --user') kind=words words='' ;;
    'servers start --runtime-dir') kind=directory words='' ;;
    'servers start') kind=words words='' ;;
    'servers stop --user') kind=words words='' ;;
    'servers stop --runtime-dir') kind=directory words='' ;;
    'servers stop') kind=words words='' ;;
    'servers restart --user') kind=words words='' ;;
    'servers restart --runtime-dir') kind=directory words='' ;;
    'servers restart') kind=words words='' ;;
    'servers enable --user') kind=words words='' ;;
    'servers enable --runtime-dir') kind=directory words='' ;;
    'servers enable') kind=words words='' ;;
    'servers disable --user') kind=words words='' ;;
    'servers disable --runtime-dir') kind=directory words='' ;;
    'servers disable') kind=words words='' ;;
    'servers import -o' | 'servers import --output') kind=directory words='' ;;
    'servers import') kind=file words='' ;;
    'servers run --user') kind=words words='' ;;
    'servers run --config') kind=file words='' ;;
    'servers run --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'servers run --runtime-dir') kind=directory words='' ;;
    'servers run --log-format') kind=words words='auto console json' ;;
    'servers run --log-level') kind=words words='debug info warning error' ;;
    'plan --model') kind=file words='' ;;
    'plan -c' | 'plan --ctx-size' | 'plan --n-ctx') kind=words words='' ;;
    'plan --parallel' | 'plan --slots') kind=words words='' ;;
    'plan --cache-type-k') kind=words words='f16 q8_0 q4_0' ;;
    'plan --cache-type-v') kind=words words='f16 q8_0 q4_0' ;;
    'plan --batch' | 'plan --batch-size') kind=words words='' ;;
    'plan --ubatch' | 'plan --ubatch-size') kind=words words='' ;;
    'plan --flash-attn') kind=words words='on off auto' ;;
    'plan --mmproj') kind=file words='' ;;
    'plan --n-gpu-layers' | 'plan --ngl') kind=words words='' ;;
    'plan --n-cpu-moe') kind=words words='' ;;
    'plan --devices') kind=gpu words='' ;;
    'plan --device-order') kind=words words='free_desc total_desc index' ;;
    'plan --reserve-mib') kind=words words=24GiB ;;
    'plan --min-budget-mib') kind=words words=24GiB ;;
    'plan --gpu') kind=words words=24GiB ;;
    'plan --fit-params') kind=file words='' ;;
    'plan --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'plan --runtime-dir') kind=directory words='' ;;
    plan) kind=file words='' ;;
    'analyze --model') kind=file words='' ;;
    'analyze -c' | 'analyze --ctx-size' | 'analyze --n-ctx') kind=words words='' ;;
    'analyze --parallel' | 'analyze --slots') kind=words words='' ;;
    'analyze --cache-type-k') kind=words words='f16 q8_0 q4_0' ;;
    'analyze --cache-type-v') kind=words words='f16 q8_0 q4_0' ;;
    'analyze --batch' | 'analyze --batch-size') kind=words words='' ;;
    'analyze --ubatch' | 'analyze --ubatch-size') kind=words words='' ;;
    'analyze --flash-attn') kind=words words='on off auto' ;;
    'analyze --mmproj') kind=file words='' ;;
    'analyze --devices') kind=gpu words='' ;;
    'analyze --device-order') kind=words words='free_desc total_desc index' ;;
    'analyze --reserve-mib') kind=words words=24GiB ;;
    'analyze --min-budget-mib') kind=words words=24GiB ;;
    'analyze --gpu') kind=words words=24GiB ;;
    'analyze --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'analyze --runtime-dir') kind=directory words='' ;;
    analyze) kind=file words='' ;;
    'gpuctl ls --config') kind=file words='' ;;
    'gpuctl ls --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'gpuctl ls --runtime-dir') kind=directory words='' ;;
    'gpuctl ls --gvm-root') kind=directory words='' ;;
    'gpuctl ls --proc-root') kind=directory words='' ;;
    'gpuctl get --config') kind=file words='' ;;
    'gpuctl get --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'gpuctl get --runtime-dir') kind=directory words='' ;;
    'gpuctl get --gvm-root') kind=directory words='' ;;
    'gpuctl get --proc-root') kind=directory words='' ;;
    'gpuctl get') kind=words words='memory.limit compute.priority compute.freeze cpu.nice cpu.weight' ;;
    'gpuctl set --how') kind=words words='auto gvm cgroup signal' ;;
    'gpuctl set --timeout') kind=words words='30s 5m 30m 2h' ;;
    'gpuctl set --config') kind=file words='' ;;
    'gpuctl set --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'gpuctl set --runtime-dir') kind=directory words='' ;;
    'gpuctl set --gvm-root') kind=directory words='' ;;
    'gpuctl set --proc-root') kind=directory words='' ;;
    'gpuctl set') kind=words words='compute.freeze=1 compute.freeze=0 compute.priority= memory.limit=' ;;
    'gpuctl reset --timeout') kind=words words='30s 5m 30m 2h' ;;
    'gpuctl reset --config') kind=file words='' ;;
    'gpuctl reset --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'gpuctl reset --runtime-dir') kind=directory words='' ;;
    'gpuctl reset --gvm-root') kind=directory words='' ;;
    'gpuctl reset --proc-root') kind=directory words='' ;;
    'gpuctl reset') kind=words words='memory.limit compute.priority compute.freeze cpu.nice cpu.weight' ;;
    'setup -p' | 'setup --port') kind=words words='' ;;
    'setup --root') kind=directory words='' ;;
    'doctor --only') kind=words words='MS-CONFIG MS-DAEMON MS-DRIVER MS-GPU MS-GVM MS-KERNEL MS-METRICS MS-PROBE MS-RIVAL MS-SERVER MS-UNIT MS-KERNEL-01 MS-KERNEL-02 MS-KERNEL-03 MS-KERNEL-04 MS-KERNEL-05 MS-KERNEL-06 MS-KERNEL-07 MS-KERNEL-08 MS-DRIVER-01 MS-DRIVER-02 MS-DRIVER-03 MS-DRIVER-04 MS-GPU-01 MS-GPU-02 MS-GPU-03 MS-GPU-04 MS-GPU-05 MS-SERVER-01 MS-SERVER-02 MS-SERVER-03 MS-RIVAL-01 MS-GVM-01 MS-GVM-02 MS-GVM-03 MS-CONFIG-01 MS-CONFIG-02 MS-CONFIG-03 MS-CONFIG-04 MS-CONFIG-05 MS-UNIT-01 MS-UNIT-02 MS-UNIT-03 MS-UNIT-04 MS-UNIT-05 MS-DAEMON-01 MS-DAEMON-02 MS-DAEMON-03 MS-DAEMON-04 MS-METRICS-01 MS-PROBE-01 MS-PROBE-02' ;;
    'doctor --config') kind=file words='' ;;
    'doctor --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'doctor --runtime-dir') kind=directory words='' ;;
    doctor) kind=words words='MS-CONFIG MS-DAEMON MS-DRIVER MS-GPU MS-GVM MS-KERNEL MS-METRICS MS-PROBE MS-RIVAL MS-SERVER MS-UNIT MS-KERNEL-01 MS-KERNEL-02 MS-KERNEL-03 MS-KERNEL-04 MS-KERNEL-05 MS-KERNEL-06 MS-KERNEL-07 MS-KERNEL-08 MS-DRIVER-01 MS-DRIVER-02 MS-DRIVER-03 MS-DRIVER-04 MS-GPU-01 MS-GPU-02 MS-GPU-03 MS-GPU-04 MS-GPU-05 MS-SERVER-01 MS-SERVER-02 MS-SERVER-03 MS-RIVAL-01 MS-GVM-01 MS-GVM-02 MS-GVM-03 MS-CONFIG-01 MS-CONFIG-02 MS-CONFIG-03 MS-CONFIG-04 MS-CONFIG-05 MS-UNIT-01 MS-UNIT-02 MS-UNIT-03 MS-UNIT-04 MS-UNIT-05 MS-DAEMON-01 MS-DAEMON-02 MS-DAEMON-03 MS-DAEMON-04 MS-METRICS-01 MS-PROBE-01 MS-PROBE-02' ;;
    'calibrate --rounds') kind=words words='' ;;
    'calibrate --hold') kind=words words='30s 5m 30m 2h' ;;
    'calibrate --plot') kind=file words='' ;;
    'calibrate -p' | 'calibrate --port') kind=words words='' ;;
    'calibrate --config') kind=file words='' ;;
    'calibrate --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'calibrate --runtime-dir') kind=directory words='' ;;
    calibrate) kind=gpu words='' ;;
    'config init -o' | 'config init --output') kind=file words='' ;;
    'config check') kind=file words='' ;;
    'config show --config') kind=file words='' ;;
    'config show -p' | 'config show --port') kind=words words='' ;;
    'config show --idle-after') kind=words words='30s 5m 30m 2h' ;;
    'config show --quiet') kind=words words='no-connections no-traffic' ;;
    'config show --ignore') kind=words words='' ;;
    'config show --touch') kind=words words='off 250ms 1s' ;;
    'config show --simulate') kind=list words='a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu' ;;
    'config show --lever') kind=words words='auto memory-clock graphics-clock pstate' ;;
    'config show --metrics') kind=words words='off 127.0.0.1:9823' ;;
    'config show --runtime-dir') kind=directory words='' ;;
    'config show --log-format') kind=words words='auto console json' ;;
    'config show --log-level') kind=words words='debug info warning error' ;;
    'config show --loader-python') kind=file words='' ;;
    help) kind=words words='run serve gpus ports restore status top verify report hold unhold park pause resume release wake sleep suspend reload gateway servers plan analyze gpuctl setup doctor calibrate config help' ;;
    *) kind='' words='' ;;
    esac
}

# What there is in a command: $path -> commands, options, repeatable options.
_memscaler_options() {
    case "$path" in
    '')
        commands='run serve gpus ports restore status top verify report hold unhold park pause resume release wake sleep suspend reload gateway servers plan analyze gpuctl setup doctor calibrate config help' options='--version -h --help' many='' wraps=''
        ;;
    run)
        commands='' options='-p --port --discover --idle-after --quiet --ignore --touch --config --dry-run --simulate --lever --metrics --runtime-dir --log-format --log-level --loader-python -h --help' many='-p --port --ignore' wraps=''
        ;;
    serve)
        commands='' options='-m --model --model-path --host -p --port -c --n-ctx --parallel --cache-type-k --cache-type-v --n-batch --n-ubatch --mmproj --alias --api-key --devices --reserve-mib --no-smart-split --smart-split --force --ungoverned --idle-after --log --log-level --config --simulate --runtime-dir --dry-run --json -h --help' many='' wraps=''
        ;;
    gpus)
        commands='' options='--config --simulate --runtime-dir --json -h --help' many='' wraps=''
        ;;
    ports)
        commands='' options='-p --port --config --simulate --runtime-dir --json -h --help' many='-p --port' wraps=''
        ;;
    restore)
        commands='' options='--all --wait --runtime-dir --simulate --json -h --help' many='' wraps=''
        ;;
    status)
        commands='' options='-w --watch --runtime-dir --json -h --help' many='' wraps=''
        ;;
    top)
        commands='' options='--runtime-dir -h --help' many='' wraps=''
        ;;
    verify)
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    report)
        commands='' options='--since --price --html --plots --state-dir --runtime-dir --simulate --json -h --help' many='' wraps=''
        ;;
    hold)
        commands='' options='--for --reason --runtime-dir --json -h --help' many='' wraps=yes
        ;;
    unhold)
        commands='' options='--id --runtime-dir --json -h --help' many='' wraps=''
        ;;
    park)
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    pause)
        commands='' options='--for --reason --runtime-dir --json -h --help' many='' wraps=''
        ;;
    resume)
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    release)
        commands='' options='--reason --runtime-dir --json -h --help' many='' wraps=''
        ;;
    wake)
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    sleep)
        commands='' options='--stage --runtime-dir --json -h --help' many='' wraps=''
        ;;
    suspend)
        commands='now never allow status' options='-h --help' many='' wraps=''
        ;;
    'suspend now')
        commands='' options='--wake-at --wake-in --force --no-wait --wait --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'suspend never')
        commands='' options='--for --reason --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'suspend allow')
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    'suspend status')
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    reload)
        commands='' options='--runtime-dir --json -h --help' many='' wraps=''
        ;;
    gateway)
        commands='' options='--listen --to --name --server --mac --wake-to --protocol --ready --wait --hold --no-hold --wake-timeout --no-wake-path --no-wake-from --metrics --drain --dry-run --check --json --config --runtime-dir --log-format --log-level -h --help' many='--no-wake-path --no-wake-from' wraps=''
        ;;
    servers)
        commands='list show logs apply reload start stop restart enable disable import run' options='-h --help' many='' wraps=''
        ;;
    'servers list')
        commands='' options='--user --config --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers show')
        commands='' options='--user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers logs')
        commands='' options='-n --lines -f --follow --user --runtime-dir -h --help' many='' wraps=''
        ;;
    'servers apply')
        commands='' options='--dry-run --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers reload')
        commands='' options='--user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers start')
        commands='' options='--all --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers stop')
        commands='' options='--all --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers restart')
        commands='' options='--all --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers enable')
        commands='' options='--all --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers disable')
        commands='' options='--all --no-wait --user --runtime-dir --json -h --help' many='' wraps=''
        ;;
    'servers import')
        commands='' options='-o --output --dry-run --json -h --help' many='' wraps=''
        ;;
    'servers run')
        commands='' options='--user --config --simulate --runtime-dir --log-format --log-level -h --help' many='' wraps=''
        ;;
    plan)
        commands='' options='--model -c --ctx-size --n-ctx --parallel --slots --cache-type-k --cache-type-v --batch --batch-size --ubatch --ubatch-size --flash-attn --mmproj --swa-full --no-kv-offload --n-gpu-layers --ngl --n-cpu-moe --devices --device-order --reserve-mib --min-budget-mib --gpu --fit-params --force --simulate --runtime-dir --json -h --help' many=--gpu wraps=''
        ;;
    analyze)
        commands='' options='--model -c --ctx-size --n-ctx --parallel --slots --cache-type-k --cache-type-v --batch --batch-size --ubatch --ubatch-size --flash-attn --mmproj --swa-full --no-kv-offload --devices --device-order --reserve-mib --min-budget-mib --gpu --layers --simulate --runtime-dir --json -h --help' many=--gpu wraps=''
        ;;
    gpuctl)
        commands='ls get set reset' options='-h --help' many='' wraps=''
        ;;
    'gpuctl ls')
        commands='' options='--config --simulate --runtime-dir --gvm-root --proc-root --json -h --help' many='' wraps=''
        ;;
    'gpuctl get')
        commands='' options='--config --simulate --runtime-dir --gvm-root --proc-root --json -h --help' many='' wraps=''
        ;;
    'gpuctl set')
        commands='' options='--how --dry-run --beyond --timeout --config --simulate --runtime-dir --gvm-root --proc-root --json -h --help' many='' wraps=''
        ;;
    'gpuctl reset')
        commands='' options='--dry-run --timeout --config --simulate --runtime-dir --gvm-root --proc-root --json -h --help' many='' wraps=''
        ;;
    setup)
        commands='' options='--dry-run --discover -p --port --no-start --force --remove --purge --root -h --help' many='-p --port' wraps=''
        ;;
    doctor)
        commands='' options='--only --probe --config --simulate --runtime-dir --json -h --help' many=--only wraps=''
        ;;
    calibrate)
        commands='' options='--all --rounds --hold --plot -p --port --config --simulate --runtime-dir --json -h --help' many='-p --port' wraps=''
        ;;
    config)
        commands='init check show schema' options='-h --help' many='' wraps=''
        ;;
    'config init')
        commands='' options='-o --output --force -h --help' many='' wraps=''
        ;;
    'config check')
        commands='' options='--json -h --help' many='' wraps=''
        ;;
    'config show')
        commands='' options='--origin --config --json -h --help -p --port --discover --idle-after --quiet --ignore --touch --dry-run --simulate --lever --metrics --runtime-dir --log-format --log-level --loader-python' many='-p --port --ignore' wraps=''
        ;;
    'config schema')
        commands='' options='-h --help' many='' wraps=''
        ;;
    help)
        commands='' options='-h --help' many='' wraps=''
        ;;
    esac
}

_memscaler() {
    local cur=${COMP_WORDS[COMP_CWORD]} path='' option='' given=' ' prefix='' at word each
    local kind='' words='' commands='' options='' many='' wraps='' offered=''
    COMPREPLY=()
    _memscaler_options
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${COMP_WORDS[at]}
        if [[ $option ]]; then  # this is its value; bash makes "=" a word of its own
            [[ $word == = ]] || option=''
        elif [[ $word == -- && $wraps ]]; then
            _memscaler_wrapped "$((at + 1))"
            return
        elif [[ $word == --*=* ]]; then
            given+="${word%%=*} "
        elif [[ $word == -* ]]; then
            given+="$word "
            _memscaler_value "$path $word"
            [[ $kind == '' || $kind == maybe* ]] || option=$word
        elif [[ " $commands " == *" $word "* ]]; then
            path=${path:+$path }$word given=' '
            _memscaler_options
        fi
    done
    if [[ $option && $cur == = ]]; then
        cur=''
    elif [[ ! $option && $cur == --*=* ]]; then
        option=${cur%%=*} prefix=${cur%%=*}= cur=${cur#*=}
    fi
    if [[ $option ]]; then
        _memscaler_value "$path $option"
        _memscaler_offer
        return
    fi
    word=${COMP_WORDS[COMP_CWORD - 1]}
    if [[ $word == -* ]]; then
        _memscaler_value "$path $word"
        [[ $kind != maybe* ]] || { kind=words; _memscaler_offer; }
    fi
    if [[ $cur == -* ]]; then
        for each in $options; do
            [[ $given == *" $each "* && " $many " != *" $each "* ]] || offered+="$each "
        done
        mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$cur")
    elif [[ $commands ]]; then
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$commands" -- "$cur")
    else
        _memscaler_value "$path"
        _memscaler_offer
    fi
}

# Add to the answer what $kind and $words say.
_memscaler_offer() {
    local each
    case "$kind" in
    list)
        [[ $cur == *,* ]] && prefix+="${cur%,*}," cur=${cur##*,}
        ;;
    gpu)
        for each in /dev/nvidia[0-9]*; do
            [[ ! -e $each ]] || words+=" gpu${each#/dev/nvidia}"
        done
        ;;
    file | directory)
        compopt -o filenames 2>/dev/null
        [[ $kind == file ]] && each=-f || each=-d
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen "$each" -- "$cur")
        return
        ;;
    esac
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -P "$prefix" -W "$words" -- "$cur")
}

# The command behind "--" begins at word $1: as if it stood alone.
_memscaler_wrapped() {
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif ((COMP_CWORD == $1)); then
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    else
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}

complete -F _memscaler memscaler
