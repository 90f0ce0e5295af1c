"""Completion for zsh: one function per command, with what each option does beside it."""

from __future__ import annotations

from tools.commands import COMMAND, DIRECTORY, FILE, GPU, LISTS, Argument, Command, Option

HEAD = """\
#compdef memscaler
# Completion of memscaler for zsh. Made by tools/completions.py from the command line itself; starts no process.

_memscaler_gpus() {
    local -a gpus
    gpus=(/dev/nvidia<->(N))
    compadd -- gpu${^gpus#/dev/nvidia}
}
"""
# not `commands`: behind "hold --" zsh looks into its own parameter of that name
GROUP = """
{function}() {{
    local curcontext=$curcontext state line
    local -a below
    below=(
{commands}
    )
    _arguments -C -s -S \\
{options}
        '1:command:->command' \\
        '*::argument:->argument'
    case $state in
    command) _describe -t commands command below ;;
    argument)
        curcontext=${{curcontext%:*}}-$line[1]:
        (( ! $+functions[{function}_$line[1]] )) || {function}_$line[1]
        ;;
    esac
}}
"""
PLAIN = """
{function}() {{
{before}    _arguments -s -S \\
{specs}
}}
"""
WRAPS = """\
    local at=${words[(i)--]}
    if (( at < CURRENT )); then  # behind it a command begins
        shift $at words
        (( CURRENT -= at ))
        _normal
        return
    fi
"""
TAIL = """
_memscaler "$@"
"""


def render(root: Command) -> str:
    """The whole file."""
    return HEAD + "".join(_function(each, root) for each in root.walk()) + TAIL


def _function(command: Command, root: Command) -> str:
    function = "_".join(["_memscaler", *command.path.split()])
    options = [_option(each, root) for each in (*command.options, *command.lent)]
    if command.commands:
        return GROUP.format(
            function=function,
            commands="\n".join(f"        {_quoted(f'{each.name}:{each.short_help}')}" for each in command.commands),
            options=" \\\n".join(f"        {each}" for each in options) + " \\",
        )
    specs = options + [_argument(each, root) for each in command.arguments]
    return PLAIN.format(
        function=function,
        before=WRAPS if command.wraps else "",
        specs=" \\\n".join(f"        {each}" for each in specs),
    )


def _option(option: Option, root: Command) -> str:
    """For _arguments: '(-p --port)'{-p,--port}'[help]:PORT:' and the like."""
    value = f"{':' * (1 + option.may)}{_escaped(option.metavar)}:{_action(option, root)}" if option.metavar else ""
    explained = f"[{_escaped(option.brief)}]{value}"
    names = [name + ("=" if option.metavar and name.startswith("--") else "") for name in option.names]
    once = "" if option.many else f"({' '.join(option.names)})"
    star = "*" if option.many else ""
    if len(names) == 1:
        return _quoted(f"{star or once * bool(option.metavar)}{names[0]}{explained}")
    return _quoted(star or once) + "{" + ",".join(names) + "}" + _quoted(explained)


def _argument(argument: Argument, root: Command) -> str:
    place = "*" if argument.many else "1"
    return _quoted(f"{place}:{_escaped(argument.metavar)}:{_action(argument, root)}")


def _action(each: Option | Argument, root: Command) -> str:
    value = each.value
    if value == COMMAND:
        return f"({' '.join(command.name for command in root.commands)})"
    if isinstance(value, str):
        return {GPU: "_memscaler_gpus", FILE: "_files", DIRECTORY: "_files -/"}[value]
    words = " ".join(map(_escaped, value))
    if each.metavar in LISTS:
        return f"_values -s , {each.metavar.lower()} {words}"
    return f"({words})" if words else ""


def _escaped(text: str) -> str:
    """Colons and brackets mean something in a specification."""
    for char in "\\:[]":
        text = text.replace(char, "\\" + char)
    return text


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
