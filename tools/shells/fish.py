"""Completion for fish."""

from __future__ import annotations

from collections.abc import Iterator

from tools.commands import COMMAND, DIRECTORY, FILE, GPU, LISTS, VALUES, Argument, Command, Option

HEAD = """\
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
"""
PATHS = """\
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
"""
LIST = """
function __memscaler_{name}
    string split ' ' '{words}'
end
"""
END = """
complete -c memscaler -f
"""


def render(root: Command) -> str:
    """The whole file."""
    commands = [*root.walk()]
    lists = "".join(LIST.format(name=name.lower(), words=" ".join(VALUES[name])) for name in sorted(LISTS))
    below = "".join(line for each in commands for line in _command(each, root))
    return HEAD + "".join(_paths(commands)) + PATHS + lists + END + below


def _paths(commands: list[Command]) -> Iterator[str]:
    """How the path grows, and which options take the next word."""
    for command in commands:
        if command.path:
            before, _, name = command.path.rpartition(" ")
            yield f"            case {_quoted(f'{before} {name}')}\n                set path {_quoted(command.path)}\n"
        if command.wraps:
            here = _quoted(f"{command.path} --")
            yield f"            case {here}\n                echo '-- '\n                return\n"
        taking = [each for each in (*command.options, *command.lent) if each.metavar and not each.may]
        names = [_quoted(f"{command.path} {name}") for each in taking for name in each.names]
        if names:
            yield f"            case {' '.join(names)}\n                set value yes\n"


def _command(command: Command, root: Command) -> Iterator[str]:
    here = f"complete -c memscaler -n {_quoted(_at(command))}"
    yield f"\n# memscaler {command.path}".rstrip() + "\n"
    for each in command.commands:
        yield f"{here} -a {each.name} -d {_quoted(each.short_help)}\n"
    for option in (*command.options, *command.lent):
        yield f"{here} {_names(option)}{_value(option, root)} -d {_quoted(option.brief)}\n"
        if option.may:
            last = f"{_at(command)}; and string match -qr '^({'|'.join(option.names)})$' -- (commandline -opc)[-1]"
            yield f"complete -c memscaler -n {_quoted(last)} -a {_quoted(' '.join(option.value))}\n"
    for argument in command.arguments:
        yield f"{here}{_value(argument, root)}\n"
    if command.wraps:
        again = "(__fish_complete_subcommand --fcs-skip=(contains -i -- -- (commandline -opc)))"
        yield f"complete -c memscaler -n '__memscaler_at \"-- \"' -x -a {_quoted(again)}\n"


def _at(command: Command) -> str:
    return f"__memscaler_at {command.path}".rstrip()


def _names(option: Option) -> str:
    return " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)


def _value(each: Option | Argument, root: Command) -> str:
    """Flags of `complete`: what may follow."""
    if isinstance(each, Option) and (not each.metavar or each.may):
        return ""
    value = each.value
    if value == COMMAND:
        return f" -x -a {_quoted(' '.join(command.name for command in root.commands))}"
    if value == FILE:
        return " -r -F"
    if value in (GPU, DIRECTORY):
        return f" -x -a {_quoted('(__memscaler_gpus)' if value == GPU else '(__fish_complete_directories)')}"
    words = " ".join(value)
    if each.metavar in LISTS:
        return f" -x -a '(__fish_complete_list , __memscaler_{each.metavar.lower()})'"
    return f" -x -a {_quoted(words)}" if words else " -x"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
