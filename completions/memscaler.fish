# Completion of memscaler for fish. Made by tools/completions.py from the command line itself; starts no process.

# The command that the words before the cursor make, e.g. "config check"; "-- " where a command line of its own begins.
function __memscaler_path
    set -l path
    set -l words (commandline -opc)
    set -l value no
    for word in $words[2..]
        if test $value = yes
            set value no
            continue
        end
        switch "$path $word"
            case ' run'
                set path 'run'
            case 'run -p' 'run --port' 'run --idle-after' 'run --quiet' 'run --ignore' 'run --touch' 'run --config' 'run --simulate' 'run --lever' 'run --metrics' 'run --runtime-dir' 'run --log-format' 'run --log-level' 'run --loader-python'
                set value yes
            case ' serve'
                set path 'serve'
            case 'serve -m' 'serve --model' 'serve --model-path' 'serve --host' 'serve -p' 'serve --port' 'serve -c' 'serve --n-ctx' 'serve --parallel' 'serve --cache-type-k' 'serve --cache-type-v' 'serve --n-batch' 'serve --n-ubatch' 'serve --mmproj' 'serve --alias' 'serve --api-key' 'serve --devices' 'serve --reserve-mib' 'serve --idle-after' 'serve --log' 'serve --log-level' 'serve --config' 'serve --simulate' 'serve --runtime-dir'
                set value yes
            case ' gpus'
                set path 'gpus'
            case 'gpus --config' 'gpus --simulate' 'gpus --runtime-dir'
                set value yes
            case ' ports'
                set path 'ports'
            case 'ports -p' 'ports --port' 'ports --config' 'ports --simulate' 'ports --runtime-dir'
                set value yes
            case ' restore'
                set path 'restore'
            case 'restore --runtime-dir' 'restore --simulate'
                set value yes
            case ' status'
                set path 'status'
            case 'status --runtime-dir'
                set value yes
            case ' top'
                set path 'top'
            case 'top --runtime-dir'
                set value yes
            case ' verify'
                set path 'verify'
            case 'verify --runtime-dir'
                set value yes
            case ' report'
                set path 'report'
            case 'report --since' 'report --price' 'report --html' 'report --plots' 'report --state-dir' 'report --runtime-dir' 'report --simulate'
                set value yes
            case ' hold'
                set path 'hold'
            case 'hold --'
                echo '-- '
                return
            case 'hold --for' 'hold --reason' 'hold --runtime-dir'
                set value yes
            case ' unhold'
                set path 'unhold'
            case 'unhold --id' 'unhold --runtime-dir'
                set value yes
            case ' park'
                set path 'park'
            case 'park --runtime-dir'
                set value yes
            case ' pause'
                set path 'pause'
            case 'pause --for' 'pause --reason' 'pause --runtime-dir'
                set value yes
            case ' resume'
                set path 'resume'
            case 'resume --runtime-dir'
                set value yes
            case ' release'
                set path 'release'
            case 'release --reason' 'release --runtime-dir'
                set value yes
            case ' wake'
                set path 'wake'
            case 'wake --runtime-dir'
                set value yes
            case ' sleep'
                set path 'sleep'
            case 'sleep --stage' 'sleep --runtime-dir'
                set value yes
            case ' suspend'
                set path 'suspend'
            case 'suspend now'
                set path 'suspend now'
            case 'suspend now --wake-at' 'suspend now --wake-in' 'suspend now --runtime-dir'
                set value yes
            case 'suspend never'
                set path 'suspend never'
            case 'suspend never --for' 'suspend never --reason' 'suspend never --runtime-dir'
                set value yes
            case 'suspend allow'
                set path 'suspend allow'
            case 'suspend allow --runtime-dir'
                set value yes
            case 'suspend status'
                set path 'suspend status'
            case 'suspend status --runtime-dir'
                set value yes
            case ' reload'
                set path 'reload'
            case 'reload --runtime-dir'
                set value yes
            case ' gateway'
                set path 'gateway'
            case 'gateway --listen' 'gateway --to' 'gateway --name' 'gateway --server' 'gateway --mac' 'gateway --wake-to' 'gateway --protocol' 'gateway --ready' 'gateway --wait' 'gateway --wake-timeout' 'gateway --no-wake-path' 'gateway --no-wake-from' 'gateway --metrics' 'gateway --drain' 'gateway --config' 'gateway --runtime-dir' 'gateway --log-format' 'gateway --log-level'
                set value yes
            case ' servers'
                set path 'servers'
            case 'servers list'
                set path 'servers list'
            case 'servers list --user' 'servers list --config' 'servers list --runtime-dir'
                set value yes
            case 'servers show'
                set path 'servers show'
            case 'servers show --user' 'servers show --runtime-dir'
                set value yes
            case 'servers logs'
                set path 'servers logs'
            case 'servers logs -n' 'servers logs --lines' 'servers logs --user' 'servers logs --runtime-dir'
                set value yes
            case 'servers apply'
                set path 'servers apply'
            case 'servers apply --user' 'servers apply --runtime-dir'
                set value yes
            case 'servers reload'
                set path 'servers reload'
            case 'servers reload --user' 'servers reload --runtime-dir'
                set value yes
            case 'servers start'
                set path 'servers start'
            case 'servers start --user' 'servers start --runtime-dir'
                set value yes
            case 'servers stop'
                set path 'servers stop'
            case 'servers stop --user' 'servers stop --runtime-dir'
                set value yes
            case 'servers restart'
                set path 'servers restart'
            case 'servers restart --user' 'servers restart --runtime-dir'
                set value yes
            case 'servers enable'
                set path 'servers enable'
            case 'servers enable --user' 'servers enable --runtime-dir'
                set value yes
            case 'servers disable'
                set path 'servers disable'
            case 'servers disable --user' 'servers disable --runtime-dir'
                set value yes
            case 'servers import'
                set path 'servers import'
            case 'servers import -o' 'servers import --output'
                set value yes
            case 'servers run'
                set path 'servers run'
            case 'servers run --user' 'servers run --config' 'servers run --simulate' 'servers run --runtime-dir' 'servers run --log-format' 'servers run --log-level'
                set value yes
            case ' plan'
                set path 'plan'
            case 'plan --model' 'plan -c' 'plan --ctx-size' 'plan --n-ctx' 'plan --parallel' 'plan --slots' 'plan --cache-type-k' 'plan --cache-type-v' 'plan --batch' 'plan --batch-size' 'plan --ubatch' 'plan --ubatch-size' 'plan --flash-attn' 'plan --mmproj' 'plan --n-gpu-layers' 'plan --ngl' 'plan --n-cpu-moe' 'plan --devices' 'plan --device-order' 'plan --reserve-mib' 'plan --min-budget-mib' 'plan --gpu' 'plan --fit-params' 'plan --simulate' 'plan --runtime-dir'
                set value yes
            case ' analyze'
                set path 'analyze'
            case 'analyze --model' 'analyze -c' 'analyze --ctx-size' 'analyze --n-ctx' 'analyze --parallel' 'analyze --slots' 'analyze --cache-type-k' 'analyze --cache-type-v' 'analyze --batch' 'analyze --batch-size' 'analyze --ubatch' 'analyze --ubatch-size' 'analyze --flash-attn' 'analyze --mmproj' 'analyze --devices' 'analyze --device-order' 'analyze --reserve-mib' 'analyze --min-budget-mib' 'analyze --gpu' 'analyze --simulate' 'analyze --runtime-dir'
                set value yes
            case ' gpuctl'
                set path 'gpuctl'
            case 'gpuctl ls'
                set path 'gpuctl ls'
            case 'gpuctl ls --config' 'gpuctl ls --simulate' 'gpuctl ls --runtime-dir' 'gpuctl ls --gvm-root' 'gpuctl ls --proc-root'
                set value yes
            case 'gpuctl get'
                set path 'gpuctl get'
            case 'gpuctl get --config' 'gpuctl get --simulate' 'gpuctl get --runtime-dir' 'gpuctl get --gvm-root' 'gpuctl get --proc-root'
                set value yes
            case 'gpuctl set'
                set path 'gpuctl set'
            case 'gpuctl set --how' 'gpuctl set --timeout' 'gpuctl set --config' 'gpuctl set --simulate' 'gpuctl set --runtime-dir' 'gpuctl set --gvm-root' 'gpuctl set --proc-root'
                set value yes
            case 'gpuctl reset'
                set path 'gpuctl reset'
            case 'gpuctl reset --timeout' 'gpuctl reset --config' 'gpuctl reset --simulate' 'gpuctl reset --runtime-dir' 'gpuctl reset --gvm-root' 'gpuctl reset --proc-root'
                set value yes
            case ' setup'
                set path 'setup'
            case 'setup -p' 'setup --port' 'setup --root'
                set value yes
            case ' doctor'
                set path 'doctor'
            case 'doctor --only' 'doctor --config' 'doctor --simulate' 'doctor --runtime-dir'
                set value yes
            case ' calibrate'
                set path 'calibrate'
            case 'calibrate --rounds' 'calibrate --hold' 'calibrate --plot' 'calibrate -p' 'calibrate --port' 'calibrate --config' 'calibrate --simulate' 'calibrate --runtime-dir'
                set value yes
            case ' config'
                set path 'config'
            case 'config init'
                set path 'config init'
            case 'config init -o' 'config init --output'
                set value yes
            case 'config check'
                set path 'config check'
            case 'config show'
                set path 'config show'
            case 'config show --config' 'config show -p' 'config show --port' 'config show --idle-after' 'config show --quiet' 'config show --ignore' 'config show --touch' 'config show --simulate' 'config show --lever' 'config show --metrics' 'config show --runtime-dir' 'config show --log-format' 'config show --log-level' 'config show --loader-python'
                set value yes
            case 'config schema'
                set path 'config schema'
            case ' help'
                set path 'help'
            case '* -*'
                continue
        end
    end
    echo "$path"
end

function __memscaler_at
    test "$(__memscaler_path)" = "$argv"
end

function __memscaler_gpus
    for device in /dev/nvidia*
        string replace -rf '^/dev/nvidia([0-9]+)$' 'gpu$1' -- $device
    end
end

function __memscaler_boards
    string split ' ' 'a40 p40 l40s rtx3090 a100 a100-mig h100 t4 v100 vgpu'
end

complete -c memscaler -f

# memscaler
complete -c memscaler -n '__memscaler_at' -a run -d 'Park quiet GPUs, wake them when a client connects.'
complete -c memscaler -n '__memscaler_at' -a serve -d 'Serve a model, planned and governed, until Ctrl-C.'
complete -c memscaler -n '__memscaler_at' -a gpus -d 'Show the GPUs and what parking would do.'
complete -c memscaler -n '__memscaler_at' -a ports -d 'Show the servers that listen, their GPUs, and what is watched.'
complete -c memscaler -n '__memscaler_at' -a restore -d 'Wake what a memscaler that is gone left parked.'
complete -c memscaler -n '__memscaler_at' -a status -d 'Show what the running daemon does, and why.'
complete -c memscaler -n '__memscaler_at' -a top -d 'Watch GPUs live, and steer them by keyboard.'
complete -c memscaler -n '__memscaler_at' -a verify -d 'Check that every GPU is as memscaler means it to be.'
complete -c memscaler -n '__memscaler_at' -a report -d 'Tell what was used and saved, and what could have been.'
complete -c memscaler -n '__memscaler_at' -a hold -d 'Keep GPUs awake: for a time, or while a command runs.'
complete -c memscaler -n '__memscaler_at' -a unhold -d 'End holds.'
complete -c memscaler -n '__memscaler_at' -a park -d 'Park GPUs now.'
complete -c memscaler -n '__memscaler_at' -a pause -d 'Keep every GPU awake.'
complete -c memscaler -n '__memscaler_at' -a resume -d 'Govern again, after pause or release.'
complete -c memscaler -n '__memscaler_at' -a release -d 'Let go of the driver, for its upgrade.'
complete -c memscaler -n '__memscaler_at' -a wake -d 'Bring servers back out of deeper sleep.'
complete -c memscaler -n '__memscaler_at' -a sleep -d 'Take servers down to a deeper stage now.'
complete -c memscaler -n '__memscaler_at' -a suspend -d 'Suspend the whole machine, or keep it up.'
complete -c memscaler -n '__memscaler_at' -a reload -d 'Read the configuration anew.'
complete -c memscaler -n '__memscaler_at' -a gateway -d 'Hold clients while their server wakes, pass everything through.'
complete -c memscaler -n '__memscaler_at' -a servers -d 'Run model servers as described, and steer them by name.'
complete -c memscaler -n '__memscaler_at' -a plan -d 'Plan where models go on the GPUs, and what fits.'
complete -c memscaler -n '__memscaler_at' -a analyze -d 'Show what a model file needs in memory.'
complete -c memscaler -n '__memscaler_at' -a gpuctl -d 'Show what runs on GPUs, and freeze, limit or deprioritise it.'
complete -c memscaler -n '__memscaler_at' -a setup -d 'Make a service of this installation, and remove it again.'
complete -c memscaler -n '__memscaler_at' -a doctor -d 'Check whether this machine has what it takes, and what to do.'
complete -c memscaler -n '__memscaler_at' -a calibrate -d 'Measure what parking saves and costs on this machine.'
complete -c memscaler -n '__memscaler_at' -a config -d 'Begin, check and show the configuration.'
complete -c memscaler -n '__memscaler_at' -a help -d 'Show the help of a command.'
complete -c memscaler -n '__memscaler_at' -l version -d 'Print the version and exit'
complete -c memscaler -n '__memscaler_at' -s h -l help -d 'Show this message and exit'

# memscaler run
complete -c memscaler -n '__memscaler_at run' -s p -l port -x -d 'Ports whose connections count, and the GPUs behind them'
complete -c memscaler -n '__memscaler_at run' -l discover -d 'Watch llama.cpp, llama-swap, Ollama, vLLM and SGLang servers as they come and go, also in containers'
complete -c memscaler -n '__memscaler_at run' -l idle-after -x -a '30s 5m 30m 2h' -d 'Quiet time after which a GPU is parked'
complete -c memscaler -n '__memscaler_at run' -l quiet -x -a 'no-connections no-traffic' -d 'When a server counts as quiet: no-traffic'
complete -c memscaler -n '__memscaler_at run' -l ignore -x -d 'Clients whose connections do not count'
complete -c memscaler -n '__memscaler_at run' -l touch -x -a 'off 250ms 1s' -d 'A connection or request that is over sooner is a touch'
complete -c memscaler -n '__memscaler_at run' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at run' -l dry-run -d 'Watch and decide, but only log what would be parked'
complete -c memscaler -n '__memscaler_at run' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at run' -l lever -x -a 'auto memory-clock graphics-clock pstate' -d 'How a GPU is parked: auto, memory-clock, graphics-clock, pstate'
complete -c memscaler -n '__memscaler_at run' -l metrics -x -a 'off 127.0.0.1:9823' -d 'Where Prometheus metrics are served, or "off"'
complete -c memscaler -n '__memscaler_at run' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at run' -l log-format -x -a 'auto console json' -d 'auto: console on a terminal, else json'
complete -c memscaler -n '__memscaler_at run' -l log-level -x -a 'debug info warning error' -d 'The least that is logged'
complete -c memscaler -n '__memscaler_at run' -l loader-python -r -F -d 'The python that has bcc; "auto": ours if it has, else /usr/bin/python3'
complete -c memscaler -n '__memscaler_at run' -s h -l help -d 'Show this message and exit'

# memscaler serve
complete -c memscaler -n '__memscaler_at serve' -s m -l model -l model-path -r -F -d 'A GGUF file'
complete -c memscaler -n '__memscaler_at serve' -l host -x -d 'Where to listen'
complete -c memscaler -n '__memscaler_at serve' -s p -l port -x -d 'Where to listen; 0: any free port'
complete -c memscaler -n '__memscaler_at serve' -s c -l n-ctx -x -d 'Tokens of context, of all slots; 0: the model\'s own length'
complete -c memscaler -n '__memscaler_at serve' -l parallel -x -d 'Requests at once; 0: llama-server\'s own choice'
complete -c memscaler -n '__memscaler_at serve' -l cache-type-k -x -a 'f16 q8_0 q4_0' -d 'Of the cache\'s keys'
complete -c memscaler -n '__memscaler_at serve' -l cache-type-v -x -a 'f16 q8_0 q4_0' -d 'Of the cache\'s values: f16, q8_0, q4_0, ..'
complete -c memscaler -n '__memscaler_at serve' -l n-batch -x -d 'Tokens of a batch'
complete -c memscaler -n '__memscaler_at serve' -l n-ubatch -x -d 'Tokens of a step'
complete -c memscaler -n '__memscaler_at serve' -l mmproj -r -F -d 'Projector for images'
complete -c memscaler -n '__memscaler_at serve' -l alias -x -d 'What the API calls the model'
complete -c memscaler -n '__memscaler_at serve' -l api-key -x -d 'What clients must present'
complete -c memscaler -n '__memscaler_at serve' -l devices -x -a '(__memscaler_gpus)' -d 'The GPUs to use'
complete -c memscaler -n '__memscaler_at serve' -l reserve-mib -x -d 'What stays free on each GPU'
complete -c memscaler -n '__memscaler_at serve' -l no-smart-split -l smart-split -d 'Plan each layer\'s GPU, or leave it to llama.cpp'
complete -c memscaler -n '__memscaler_at serve' -l force -d 'Serve also what does not fit whole'
complete -c memscaler -n '__memscaler_at serve' -l ungoverned -d 'Serve without a governor'
complete -c memscaler -n '__memscaler_at serve' -l idle-after -x -a '30s 5m 30m 2h' -d 'Quiet time after which a GPU is parked'
complete -c memscaler -n '__memscaler_at serve' -l log -r -F -d 'Where the server\'s log goes; - is here'
complete -c memscaler -n '__memscaler_at serve' -l log-level -x -a 'debug info warning error' -d 'What the governor says here: debug, info, warning or error'
complete -c memscaler -n '__memscaler_at serve' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at serve' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at serve' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at serve' -l dry-run -d 'Print the plan and the command lines, start nothing'
complete -c memscaler -n '__memscaler_at serve' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at serve' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at serve' -r -F

# memscaler gpus
complete -c memscaler -n '__memscaler_at gpus' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gpus' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at gpus' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gpus' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gpus' -s h -l help -d 'Show this message and exit'

# memscaler ports
complete -c memscaler -n '__memscaler_at ports' -s p -l port -x -d 'Ports whose connections count, and the GPUs behind them'
complete -c memscaler -n '__memscaler_at ports' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at ports' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at ports' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at ports' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at ports' -s h -l help -d 'Show this message and exit'

# memscaler restore
complete -c memscaler -n '__memscaler_at restore' -l all -d 'Reset every lever of every GPU, whoever set it, not only what memscaler left'
complete -c memscaler -n '__memscaler_at restore' -l wait -d 'Wait until the memscaler that runs is gone, then restore'
complete -c memscaler -n '__memscaler_at restore' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at restore' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at restore' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at restore' -s h -l help -d 'Show this message and exit'

# memscaler status
complete -c memscaler -n '__memscaler_at status' -s w -l watch -d 'Again every TIME'
complete -c memscaler -n '__memscaler_at status; and string match -qr \'^(-w|--watch)$\' -- (commandline -opc)[-1]' -a '30s 5m 30m 2h'
complete -c memscaler -n '__memscaler_at status' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at status' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at status' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at status' -x -a '(__memscaler_gpus)'

# memscaler top
complete -c memscaler -n '__memscaler_at top' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at top' -s h -l help -d 'Show this message and exit'

# memscaler verify
complete -c memscaler -n '__memscaler_at verify' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at verify' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at verify' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at verify' -x -a '(__memscaler_gpus)'

# memscaler report
complete -c memscaler -n '__memscaler_at report' -l since -x -a '24h 7d 30d' -d 'From when on: a time back from now, or a day'
complete -c memscaler -n '__memscaler_at report' -l price -x -d 'Of a kWh'
complete -c memscaler -n '__memscaler_at report' -l html -r -F -d 'Write a page with plots there; - prints it'
complete -c memscaler -n '__memscaler_at report' -l plots -x -a '(__fish_complete_directories)' -d 'Write the plots there, as SVG and PNG'
complete -c memscaler -n '__memscaler_at report' -l state-dir -x -a '(__fish_complete_directories)' -d 'Where the history and calibrations are kept'
complete -c memscaler -n '__memscaler_at report' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at report' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at report' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at report' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at report' -x -a '(__memscaler_gpus)'

# memscaler hold
complete -c memscaler -n '__memscaler_at hold' -l for -x -a '30s 5m 30m 2h' -d 'How long at most'
complete -c memscaler -n '__memscaler_at hold' -l reason -x -d 'Why, for whoever looks at the status'
complete -c memscaler -n '__memscaler_at hold' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at hold' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at hold' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at hold' -x -a '(__memscaler_gpus)'
complete -c memscaler -n '__memscaler_at "-- "' -x -a '(__fish_complete_subcommand --fcs-skip=(contains -i -- -- (commandline -opc)))'

# memscaler unhold
complete -c memscaler -n '__memscaler_at unhold' -l id -x -d 'Only the hold with this id; see status'
complete -c memscaler -n '__memscaler_at unhold' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at unhold' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at unhold' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at unhold' -x -a '(__memscaler_gpus)'

# memscaler park
complete -c memscaler -n '__memscaler_at park' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at park' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at park' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at park' -x -a '(__memscaler_gpus)'

# memscaler pause
complete -c memscaler -n '__memscaler_at pause' -l for -x -a '30s 5m 30m 2h' -d 'How long'
complete -c memscaler -n '__memscaler_at pause' -l reason -x -d 'Why, for whoever looks at the status'
complete -c memscaler -n '__memscaler_at pause' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at pause' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at pause' -s h -l help -d 'Show this message and exit'

# memscaler resume
complete -c memscaler -n '__memscaler_at resume' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at resume' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at resume' -s h -l help -d 'Show this message and exit'

# memscaler release
complete -c memscaler -n '__memscaler_at release' -l reason -x -d 'Why, for whoever looks at the status'
complete -c memscaler -n '__memscaler_at release' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at release' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at release' -s h -l help -d 'Show this message and exit'

# memscaler wake
complete -c memscaler -n '__memscaler_at wake' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at wake' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at wake' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at wake' -x

# memscaler sleep
complete -c memscaler -n '__memscaler_at sleep' -l stage -x -a 'server-sleep checkpoint stop-server' -d 'server-sleep, checkpoint or stop-server'
complete -c memscaler -n '__memscaler_at sleep' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at sleep' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at sleep' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at sleep' -x

# memscaler suspend
complete -c memscaler -n '__memscaler_at suspend' -a now -d 'Suspend now, with an alarm if one is wanted.'
complete -c memscaler -n '__memscaler_at suspend' -a never -d 'Keep the machine up, whatever the configuration says.'
complete -c memscaler -n '__memscaler_at suspend' -a allow -d 'End what `never` began.'
complete -c memscaler -n '__memscaler_at suspend' -a status -d 'What keeps the machine up, and when it sleeps next.'
complete -c memscaler -n '__memscaler_at suspend' -s h -l help -d 'Show this message and exit'

# memscaler suspend now
complete -c memscaler -n '__memscaler_at suspend now' -l wake-at -x -a '30s 5m 30m 2h' -d 'Wake up by itself then'
complete -c memscaler -n '__memscaler_at suspend now' -l wake-in -x -a '30s 5m 30m 2h' -d 'Wake up by itself after 90s, 30m, 8h'
complete -c memscaler -n '__memscaler_at suspend now' -l force -d 'Also while clients are connected, or somebody inhibits sleep'
complete -c memscaler -n '__memscaler_at suspend now' -l no-wait -l wait -d 'Wait until it has slept, or has not'
complete -c memscaler -n '__memscaler_at suspend now' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at suspend now' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at suspend now' -s h -l help -d 'Show this message and exit'

# memscaler suspend never
complete -c memscaler -n '__memscaler_at suspend never' -l for -x -a '30s 5m 30m 2h' -d 'How long'
complete -c memscaler -n '__memscaler_at suspend never' -l reason -x -d 'Why, for whoever looks at the status'
complete -c memscaler -n '__memscaler_at suspend never' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at suspend never' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at suspend never' -s h -l help -d 'Show this message and exit'

# memscaler suspend allow
complete -c memscaler -n '__memscaler_at suspend allow' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at suspend allow' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at suspend allow' -s h -l help -d 'Show this message and exit'

# memscaler suspend status
complete -c memscaler -n '__memscaler_at suspend status' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at suspend status' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at suspend status' -s h -l help -d 'Show this message and exit'

# memscaler reload
complete -c memscaler -n '__memscaler_at reload' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at reload' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at reload' -s h -l help -d 'Show this message and exit'

# memscaler gateway
complete -c memscaler -n '__memscaler_at gateway' -l listen -x -d 'Where clients connect: HOST:PORT'
complete -c memscaler -n '__memscaler_at gateway' -l to -x -d 'The server behind it: HOST:PORT'
complete -c memscaler -n '__memscaler_at gateway' -l name -x -d 'For the log and the metrics'
complete -c memscaler -n '__memscaler_at gateway' -l server -x -d 'The server of this machine behind it: the governor is asked to bring it back'
complete -c memscaler -n '__memscaler_at gateway' -l mac -x -d 'The hardware address of the machine behind it: it is woken by magic packets'
complete -c memscaler -n '__memscaler_at gateway' -l wake-to -x -d 'Where those go'
complete -c memscaler -n '__memscaler_at gateway' -l protocol -x -a 'http tcp' -d 'tcp: no byte is ever looked at'
complete -c memscaler -n '__memscaler_at gateway' -l ready -x -a 'off /health' -d 'What must answer 200 after a wake, before clients are let through'
complete -c memscaler -n '__memscaler_at gateway' -l wait -x -a '30s 5m 30m 2h' -d 'How long a client is held at most'
complete -c memscaler -n '__memscaler_at gateway' -l hold -l no-hold -d 'Hold clients while it wakes, or tell them to come back'
complete -c memscaler -n '__memscaler_at gateway' -l wake-timeout -x -a '30s 5m 30m 2h' -d 'A wake that takes longer has failed'
complete -c memscaler -n '__memscaler_at gateway' -l no-wake-path -x -d 'Requests that wake nothing'
complete -c memscaler -n '__memscaler_at gateway' -l no-wake-from -x -d 'Clients that wake nothing'
complete -c memscaler -n '__memscaler_at gateway' -l metrics -x -a 'off 127.0.0.1:9824' -d 'Where the metrics are'
complete -c memscaler -n '__memscaler_at gateway' -l drain -x -a '30s 5m 30m 2h' -d 'At the end connections may take so long to end'
complete -c memscaler -n '__memscaler_at gateway' -l dry-run -d 'Pass on, but wake nothing: only tell what would be done'
complete -c memscaler -n '__memscaler_at gateway' -l check -d 'Say what each gateway would find, and listen nowhere'
complete -c memscaler -n '__memscaler_at gateway' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gateway' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gateway' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gateway' -l log-format -x -a 'auto console json' -d 'auto: console on a terminal, else json'
complete -c memscaler -n '__memscaler_at gateway' -l log-level -x -a 'debug info warning error' -d 'The least that is logged'
complete -c memscaler -n '__memscaler_at gateway' -s h -l help -d 'Show this message and exit'

# memscaler servers
complete -c memscaler -n '__memscaler_at servers' -a list -d 'Show the servers: states, ports, GPUs, restarts.'
complete -c memscaler -n '__memscaler_at servers' -a show -d 'Show all about one server.'
complete -c memscaler -n '__memscaler_at servers' -a logs -d 'Show what a server writes.'
complete -c memscaler -n '__memscaler_at servers' -a apply -d 'Make what runs like the descriptions: only what differs.'
complete -c memscaler -n '__memscaler_at servers' -a reload -d 'Read the descriptions anew, and say what differs.'
complete -c memscaler -n '__memscaler_at servers' -a start -d 'Start servers, also those that failed.'
complete -c memscaler -n '__memscaler_at servers' -a stop -d 'Stop servers until somebody starts them.'
complete -c memscaler -n '__memscaler_at servers' -a restart -d 'Stop servers and start them again.'
complete -c memscaler -n '__memscaler_at servers' -a enable -d 'Start servers, now and whenever the supervisor starts.'
complete -c memscaler -n '__memscaler_at servers' -a disable -d 'Stop servers, and leave them so.'
complete -c memscaler -n '__memscaler_at servers' -a import -d 'Turn gppm\'s YAML files into descriptions.'
complete -c memscaler -n '__memscaler_at servers' -a run -d 'The supervisor: start the servers, and keep them running.'
complete -c memscaler -n '__memscaler_at servers' -s h -l help -d 'Show this message and exit'

# memscaler servers list
complete -c memscaler -n '__memscaler_at servers list' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers list' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at servers list' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers list' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers list' -s h -l help -d 'Show this message and exit'

# memscaler servers show
complete -c memscaler -n '__memscaler_at servers show' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers show' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers show' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers show' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers show' -x

# memscaler servers logs
complete -c memscaler -n '__memscaler_at servers logs' -s n -l lines -x -d 'How many of the last lines'
complete -c memscaler -n '__memscaler_at servers logs' -s f -l follow -d 'Go on with what comes, until Ctrl-C'
complete -c memscaler -n '__memscaler_at servers logs' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers logs' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers logs' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers logs' -x

# memscaler servers apply
complete -c memscaler -n '__memscaler_at servers apply' -l dry-run -d 'Tell what differs and change nothing'
complete -c memscaler -n '__memscaler_at servers apply' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers apply' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers apply' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers apply' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers apply' -s h -l help -d 'Show this message and exit'

# memscaler servers reload
complete -c memscaler -n '__memscaler_at servers reload' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers reload' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers reload' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers reload' -s h -l help -d 'Show this message and exit'

# memscaler servers start
complete -c memscaler -n '__memscaler_at servers start' -l all -d 'All servers'
complete -c memscaler -n '__memscaler_at servers start' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers start' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers start' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers start' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers start' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers start' -x

# memscaler servers stop
complete -c memscaler -n '__memscaler_at servers stop' -l all -d 'All servers'
complete -c memscaler -n '__memscaler_at servers stop' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers stop' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers stop' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers stop' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers stop' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers stop' -x

# memscaler servers restart
complete -c memscaler -n '__memscaler_at servers restart' -l all -d 'All servers'
complete -c memscaler -n '__memscaler_at servers restart' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers restart' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers restart' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers restart' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers restart' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers restart' -x

# memscaler servers enable
complete -c memscaler -n '__memscaler_at servers enable' -l all -d 'All servers'
complete -c memscaler -n '__memscaler_at servers enable' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers enable' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers enable' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers enable' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers enable' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers enable' -x

# memscaler servers disable
complete -c memscaler -n '__memscaler_at servers disable' -l all -d 'All servers'
complete -c memscaler -n '__memscaler_at servers disable' -l no-wait -d 'Do not wait until the servers are ready, or failed'
complete -c memscaler -n '__memscaler_at servers disable' -l user -x -d 'Of this user\'s supervisor'
complete -c memscaler -n '__memscaler_at servers disable' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Of the supervisor'
complete -c memscaler -n '__memscaler_at servers disable' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers disable' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers disable' -x

# memscaler servers import
complete -c memscaler -n '__memscaler_at servers import' -s o -l output -x -a '(__fish_complete_directories)' -d 'Where the files go'
complete -c memscaler -n '__memscaler_at servers import' -l dry-run -d 'Print the files and write none'
complete -c memscaler -n '__memscaler_at servers import' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at servers import' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at servers import' -r -F

# memscaler servers run
complete -c memscaler -n '__memscaler_at servers run' -l user -x -d 'Run the servers that are described with this user'
complete -c memscaler -n '__memscaler_at servers run' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at servers run' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at servers run' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Control socket and report'
complete -c memscaler -n '__memscaler_at servers run' -l log-format -x -a 'auto console json' -d 'auto: console on a terminal, else json'
complete -c memscaler -n '__memscaler_at servers run' -l log-level -x -a 'debug info warning error' -d 'The least that is logged'
complete -c memscaler -n '__memscaler_at servers run' -s h -l help -d 'Show this message and exit'

# memscaler plan
complete -c memscaler -n '__memscaler_at plan' -l model -r -F -d 'The same as the argument, for who is used to llama-server\'s'
complete -c memscaler -n '__memscaler_at plan' -s c -l ctx-size -l n-ctx -x -d 'Tokens of all slots'
complete -c memscaler -n '__memscaler_at plan' -l parallel -l slots -x -d 'Requests at once'
complete -c memscaler -n '__memscaler_at plan' -l cache-type-k -x -a 'f16 q8_0 q4_0' -d 'Of keys: f16, q8_0, q4_0, ..'
complete -c memscaler -n '__memscaler_at plan' -l cache-type-v -x -a 'f16 q8_0 q4_0' -d 'Of values'
complete -c memscaler -n '__memscaler_at plan' -l batch -l batch-size -x -d 'Logical batch'
complete -c memscaler -n '__memscaler_at plan' -l ubatch -l ubatch-size -x -d 'Physical batch'
complete -c memscaler -n '__memscaler_at plan' -l flash-attn -x -a 'on off auto' -d 'Default: auto'
complete -c memscaler -n '__memscaler_at plan' -l mmproj -r -F -d 'The multimodal projector\'s file'
complete -c memscaler -n '__memscaler_at plan' -l swa-full -d 'A full-size cache in layers with a sliding window, too'
complete -c memscaler -n '__memscaler_at plan' -l no-kv-offload -d 'The KV cache stays on the CPU'
complete -c memscaler -n '__memscaler_at plan' -l n-gpu-layers -l ngl -x -d 'Layers on GPUs, of which the output is one'
complete -c memscaler -n '__memscaler_at plan' -l n-cpu-moe -x -d 'The experts of the first N layers stay on the CPU'
complete -c memscaler -n '__memscaler_at plan' -l devices -x -a '(__memscaler_gpus)' -d 'Only these: gpu0 or 0, a beginning of a UUID, a PCI address'
complete -c memscaler -n '__memscaler_at plan' -l device-order -x -a 'free_desc total_desc index' -d 'Which is filled first: free_desc, total_desc or index'
complete -c memscaler -n '__memscaler_at plan' -l reserve-mib -x -a '24GiB' -d 'Left free on every GPU, in MiB or with a unit'
complete -c memscaler -n '__memscaler_at plan' -l min-budget-mib -x -a '24GiB' -d 'A GPU with less than this above its reserve is not used'
complete -c memscaler -n '__memscaler_at plan' -l gpu -x -a '24GiB' -d 'Plan for an empty GPU of this size, for example 24GiB, not for those of this machine'
complete -c memscaler -n '__memscaler_at plan' -l fit-params -r -F -d 'llama.cpp\'s own llama-fit-params, to be asked first; auto: if it is installed; off'
complete -c memscaler -n '__memscaler_at plan' -l force -d 'What does not fit whole: with fewer layers, or experts on the CPU'
complete -c memscaler -n '__memscaler_at plan' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at plan' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at plan' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at plan' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at plan' -r -F

# memscaler analyze
complete -c memscaler -n '__memscaler_at analyze' -l model -r -F -d 'The same as the argument, for who is used to llama-server\'s'
complete -c memscaler -n '__memscaler_at analyze' -s c -l ctx-size -l n-ctx -x -d 'Tokens of all slots'
complete -c memscaler -n '__memscaler_at analyze' -l parallel -l slots -x -d 'Requests at once'
complete -c memscaler -n '__memscaler_at analyze' -l cache-type-k -x -a 'f16 q8_0 q4_0' -d 'Of keys: f16, q8_0, q4_0, ..'
complete -c memscaler -n '__memscaler_at analyze' -l cache-type-v -x -a 'f16 q8_0 q4_0' -d 'Of values'
complete -c memscaler -n '__memscaler_at analyze' -l batch -l batch-size -x -d 'Logical batch'
complete -c memscaler -n '__memscaler_at analyze' -l ubatch -l ubatch-size -x -d 'Physical batch'
complete -c memscaler -n '__memscaler_at analyze' -l flash-attn -x -a 'on off auto' -d 'Default: auto'
complete -c memscaler -n '__memscaler_at analyze' -l mmproj -r -F -d 'The multimodal projector\'s file'
complete -c memscaler -n '__memscaler_at analyze' -l swa-full -d 'A full-size cache in layers with a sliding window, too'
complete -c memscaler -n '__memscaler_at analyze' -l no-kv-offload -d 'The KV cache stays on the CPU'
complete -c memscaler -n '__memscaler_at analyze' -l devices -x -a '(__memscaler_gpus)' -d 'Only these: gpu0 or 0, a beginning of a UUID, a PCI address'
complete -c memscaler -n '__memscaler_at analyze' -l device-order -x -a 'free_desc total_desc index' -d 'Which is filled first: free_desc, total_desc or index'
complete -c memscaler -n '__memscaler_at analyze' -l reserve-mib -x -a '24GiB' -d 'Left free on every GPU, in MiB or with a unit'
complete -c memscaler -n '__memscaler_at analyze' -l min-budget-mib -x -a '24GiB' -d 'A GPU with less than this above its reserve is not used'
complete -c memscaler -n '__memscaler_at analyze' -l gpu -x -a '24GiB' -d 'Plan for an empty GPU of this size, for example 24GiB, not for those of this machine'
complete -c memscaler -n '__memscaler_at analyze' -l layers -d 'List every layer'
complete -c memscaler -n '__memscaler_at analyze' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at analyze' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at analyze' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at analyze' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at analyze' -r -F

# memscaler gpuctl
complete -c memscaler -n '__memscaler_at gpuctl' -a ls -d 'Show the processes on GPUs, and what is set on them.'
complete -c memscaler -n '__memscaler_at gpuctl' -a get -d 'Show what is set on processes.'
complete -c memscaler -n '__memscaler_at gpuctl' -a set -d 'Freeze processes, or change their limits and priorities.'
complete -c memscaler -n '__memscaler_at gpuctl' -a reset -d 'Set processes back to the defaults.'
complete -c memscaler -n '__memscaler_at gpuctl' -s h -l help -d 'Show this message and exit'

# memscaler gpuctl ls
complete -c memscaler -n '__memscaler_at gpuctl ls' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gpuctl ls' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at gpuctl ls' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gpuctl ls' -l gvm-root -x -a '(__fish_complete_directories)' -d 'Where debugfs is'
complete -c memscaler -n '__memscaler_at gpuctl ls' -l proc-root -x -a '(__fish_complete_directories)' -d 'Where proc is'
complete -c memscaler -n '__memscaler_at gpuctl ls' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gpuctl ls' -s h -l help -d 'Show this message and exit'

# memscaler gpuctl get
complete -c memscaler -n '__memscaler_at gpuctl get' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gpuctl get' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at gpuctl get' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gpuctl get' -l gvm-root -x -a '(__fish_complete_directories)' -d 'Where debugfs is'
complete -c memscaler -n '__memscaler_at gpuctl get' -l proc-root -x -a '(__fish_complete_directories)' -d 'Where proc is'
complete -c memscaler -n '__memscaler_at gpuctl get' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gpuctl get' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at gpuctl get' -x -a 'memory.limit compute.priority compute.freeze cpu.nice cpu.weight'

# memscaler gpuctl set
complete -c memscaler -n '__memscaler_at gpuctl set' -l how -x -a 'auto gvm cgroup signal' -d 'By what to freeze: gvm, cgroup or signal'
complete -c memscaler -n '__memscaler_at gpuctl set' -l dry-run -d 'Say what would be done, and do nothing'
complete -c memscaler -n '__memscaler_at gpuctl set' -l beyond -d 'Also compute.priority=16, which GVM\'s code takes and its README has not'
complete -c memscaler -n '__memscaler_at gpuctl set' -l timeout -x -a '30s 5m 30m 2h' -d 'How long to wait for one write; a lower memory.limit moves memory to the host first'
complete -c memscaler -n '__memscaler_at gpuctl set' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gpuctl set' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at gpuctl set' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gpuctl set' -l gvm-root -x -a '(__fish_complete_directories)' -d 'Where debugfs is'
complete -c memscaler -n '__memscaler_at gpuctl set' -l proc-root -x -a '(__fish_complete_directories)' -d 'Where proc is'
complete -c memscaler -n '__memscaler_at gpuctl set' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gpuctl set' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at gpuctl set' -x -a 'compute.freeze=1 compute.freeze=0 compute.priority= memory.limit='

# memscaler gpuctl reset
complete -c memscaler -n '__memscaler_at gpuctl reset' -l dry-run -d 'Say what would be done, and do nothing'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l timeout -x -a '30s 5m 30m 2h' -d 'How long to wait for one write; a lower memory.limit moves memory to the host first'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l gvm-root -x -a '(__fish_complete_directories)' -d 'Where debugfs is'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l proc-root -x -a '(__fish_complete_directories)' -d 'Where proc is'
complete -c memscaler -n '__memscaler_at gpuctl reset' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at gpuctl reset' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at gpuctl reset' -x -a 'memory.limit compute.priority compute.freeze cpu.nice cpu.weight'

# memscaler setup
complete -c memscaler -n '__memscaler_at setup' -l dry-run -d 'Tell every step and change nothing'
complete -c memscaler -n '__memscaler_at setup' -l discover -d 'Into a new configuration: watch every LLM server that comes'
complete -c memscaler -n '__memscaler_at setup' -s p -l port -x -d 'Into a new configuration: watch this port, as `run --port` does'
complete -c memscaler -n '__memscaler_at setup' -l no-start -d 'Neither enable nor start the service'
complete -c memscaler -n '__memscaler_at setup' -l force -d 'Replace files in the way that setup has not written, or not like that'
complete -c memscaler -n '__memscaler_at setup' -l remove -d 'Wake every GPU, stop the service, and remove what setup has written'
complete -c memscaler -n '__memscaler_at setup' -l purge -d 'With --remove: also the configuration, what was counted, and what was changed since'
complete -c memscaler -n '__memscaler_at setup' -l root -x -a '(__fish_complete_directories)' -d 'Of an image: below this folder'
complete -c memscaler -n '__memscaler_at setup' -s h -l help -d 'Show this message and exit'

# memscaler doctor
complete -c memscaler -n '__memscaler_at doctor' -l only -x -a 'MS-CONFIG MS-DAEMON MS-DRIVER MS-GPU MS-GVM MS-KERNEL MS-METRICS MS-PROBE MS-RIVAL MS-SERVER MS-UNIT MS-KERNEL-01 MS-KERNEL-02 MS-KERNEL-03 MS-KERNEL-04 MS-KERNEL-05 MS-KERNEL-06 MS-KERNEL-07 MS-KERNEL-08 MS-DRIVER-01 MS-DRIVER-02 MS-DRIVER-03 MS-DRIVER-04 MS-GPU-01 MS-GPU-02 MS-GPU-03 MS-GPU-04 MS-GPU-05 MS-SERVER-01 MS-SERVER-02 MS-SERVER-03 MS-RIVAL-01 MS-GVM-01 MS-GVM-02 MS-GVM-03 MS-CONFIG-01 MS-CONFIG-02 MS-CONFIG-03 MS-CONFIG-04 MS-CONFIG-05 MS-UNIT-01 MS-UNIT-02 MS-UNIT-03 MS-UNIT-04 MS-UNIT-05 MS-DAEMON-01 MS-DAEMON-02 MS-DAEMON-03 MS-DAEMON-04 MS-METRICS-01 MS-PROBE-01 MS-PROBE-02' -d 'The same, repeatable'
complete -c memscaler -n '__memscaler_at doctor' -l probe -d 'Try it: load the kernel programs, park and wake each idle GPU that the configuration governs'
complete -c memscaler -n '__memscaler_at doctor' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at doctor' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at doctor' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at doctor' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at doctor' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at doctor' -x -a 'MS-CONFIG MS-DAEMON MS-DRIVER MS-GPU MS-GVM MS-KERNEL MS-METRICS MS-PROBE MS-RIVAL MS-SERVER MS-UNIT MS-KERNEL-01 MS-KERNEL-02 MS-KERNEL-03 MS-KERNEL-04 MS-KERNEL-05 MS-KERNEL-06 MS-KERNEL-07 MS-KERNEL-08 MS-DRIVER-01 MS-DRIVER-02 MS-DRIVER-03 MS-DRIVER-04 MS-GPU-01 MS-GPU-02 MS-GPU-03 MS-GPU-04 MS-GPU-05 MS-SERVER-01 MS-SERVER-02 MS-SERVER-03 MS-RIVAL-01 MS-GVM-01 MS-GVM-02 MS-GVM-03 MS-CONFIG-01 MS-CONFIG-02 MS-CONFIG-03 MS-CONFIG-04 MS-CONFIG-05 MS-UNIT-01 MS-UNIT-02 MS-UNIT-03 MS-UNIT-04 MS-UNIT-05 MS-DAEMON-01 MS-DAEMON-02 MS-DAEMON-03 MS-DAEMON-04 MS-METRICS-01 MS-PROBE-01 MS-PROBE-02'

# memscaler calibrate
complete -c memscaler -n '__memscaler_at calibrate' -l all -d 'Every GPU that the configuration governs'
complete -c memscaler -n '__memscaler_at calibrate' -l rounds -x -d 'How often each GPU is parked and woken'
complete -c memscaler -n '__memscaler_at calibrate' -l hold -x -a '30s 5m 30m 2h' -d 'How long a round stays parked, and awake; at least 1s'
complete -c memscaler -n '__memscaler_at calibrate' -l plot -r -F -d 'Draw the last round of a GPU: an .svg or .png file; with several GPUs their names are added'
complete -c memscaler -n '__memscaler_at calibrate' -s p -l port -x -d 'Ports whose connections count, and the GPUs behind them'
complete -c memscaler -n '__memscaler_at calibrate' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at calibrate' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at calibrate' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at calibrate' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at calibrate' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at calibrate' -x -a '(__memscaler_gpus)'

# memscaler config
complete -c memscaler -n '__memscaler_at config' -a init -d 'A file to begin with: every setting, commented.'
complete -c memscaler -n '__memscaler_at config' -a check -d 'Tell everything that is wrong with a file.'
complete -c memscaler -n '__memscaler_at config' -a show -d 'The settings in force, and where they come from.'
complete -c memscaler -n '__memscaler_at config' -a schema -d 'The file\'s JSON Schema, for editors.'
complete -c memscaler -n '__memscaler_at config' -s h -l help -d 'Show this message and exit'

# memscaler config init
complete -c memscaler -n '__memscaler_at config init' -s o -l output -r -F -d 'Write it there; a new file has mode 0644'
complete -c memscaler -n '__memscaler_at config init' -l force -d 'Replace the file if it is there'
complete -c memscaler -n '__memscaler_at config init' -s h -l help -d 'Show this message and exit'

# memscaler config check
complete -c memscaler -n '__memscaler_at config check' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at config check' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at config check' -r -F

# memscaler config show
complete -c memscaler -n '__memscaler_at config show' -l origin -d 'Tell where each value comes from'
complete -c memscaler -n '__memscaler_at config show' -l config -r -F -d 'Configuration file'
complete -c memscaler -n '__memscaler_at config show' -l json -d 'Print JSON for programs'
complete -c memscaler -n '__memscaler_at config show' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at config show' -s p -l port -x -d 'Ports whose connections count, and the GPUs behind them'
complete -c memscaler -n '__memscaler_at config show' -l discover -d 'Watch llama.cpp, llama-swap, Ollama, vLLM and SGLang servers as they come and go, also in containers'
complete -c memscaler -n '__memscaler_at config show' -l idle-after -x -a '30s 5m 30m 2h' -d 'Quiet time after which a GPU is parked'
complete -c memscaler -n '__memscaler_at config show' -l quiet -x -a 'no-connections no-traffic' -d 'When a server counts as quiet: no-traffic'
complete -c memscaler -n '__memscaler_at config show' -l ignore -x -d 'Clients whose connections do not count'
complete -c memscaler -n '__memscaler_at config show' -l touch -x -a 'off 250ms 1s' -d 'A connection or request that is over sooner is a touch'
complete -c memscaler -n '__memscaler_at config show' -l dry-run -d 'Watch and decide, but only log what would be parked'
complete -c memscaler -n '__memscaler_at config show' -l simulate -x -a '(__fish_complete_list , __memscaler_boards)' -d 'Boards of the simulated driver to use'
complete -c memscaler -n '__memscaler_at config show' -l lever -x -a 'auto memory-clock graphics-clock pstate' -d 'How a GPU is parked: auto, memory-clock, graphics-clock, pstate'
complete -c memscaler -n '__memscaler_at config show' -l metrics -x -a 'off 127.0.0.1:9823' -d 'Where Prometheus metrics are served, or "off"'
complete -c memscaler -n '__memscaler_at config show' -l runtime-dir -x -a '(__fish_complete_directories)' -d 'Where the journal of parked GPUs and the lock file are'
complete -c memscaler -n '__memscaler_at config show' -l log-format -x -a 'auto console json' -d 'auto: console on a terminal, else json'
complete -c memscaler -n '__memscaler_at config show' -l log-level -x -a 'debug info warning error' -d 'The least that is logged'
complete -c memscaler -n '__memscaler_at config show' -l loader-python -r -F -d 'The python that has bcc; "auto": ours if it has, else /usr/bin/python3'

# memscaler config schema
complete -c memscaler -n '__memscaler_at config schema' -s h -l help -d 'Show this message and exit'

# memscaler help
complete -c memscaler -n '__memscaler_at help' -s h -l help -d 'Show this message and exit'
complete -c memscaler -n '__memscaler_at help' -x -a 'run serve gpus ports restore status top verify report hold unhold park pause resume release wake sleep suspend reload gateway servers plan analyze gpuctl setup doctor calibrate config help'
