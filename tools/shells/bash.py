"""Completion for bash: plain bash, also without the package bash-completion."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tools.commands import COMMAND, DIRECTORY, FILE, GPU, LISTS, Argument, Command, Option

HEAD = """\
# Completion of memscaler for bash. Made by tools/completions.py from the command line itself; starts no process.
# shellcheck shell=bash

# What a value or an argument may be: words, and what the shell finds itself.
_memscaler_value() {
    case "$1" in
"""
COMMANDS = """\
    *) kind='' words='' ;;
    esac
}

# What there is in a command: $path -> commands, options, repeatable options.
_memscaler_options() {
    case "$path" in
"""
TAIL = r"""    esac
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
"""


def render(root: Command) -> str:
    """The whole file."""
    commands = [*root.walk()]
    values = [line for each in commands for line in _values(each, root)]
    return HEAD + "".join(values) + COMMANDS + "".join(_command(each) for each in commands) + TAIL


def _values(command: Command, root: Command) -> Iterator[str]:
    for option in (*command.options, *command.lent):
        if option.metavar:
            pattern = " | ".join(shlex.quote(f"{command.path} {name}") for name in option.names)
            kind, words = _kind(option, root)
            yield f"    {pattern}) kind={kind} words={shlex.quote(words)} ;;\n"
    for argument in command.arguments:
        kind, words = _kind(argument, root)
        yield f"    {shlex.quote(command.path)}) kind={kind} words={shlex.quote(words)} ;;\n"


def _kind(each: Option | Argument, root: Command) -> tuple[str, str]:
    value = each.value
    if value == COMMAND:
        return "words", " ".join(command.name for command in root.commands)
    if isinstance(value, str):
        return {GPU: "gpu", FILE: "file", DIRECTORY: "directory"}[value], ""
    maybe = isinstance(each, Option) and each.may
    return "maybe" if maybe else "list" if each.metavar in LISTS else "words", " ".join(value)


def _command(command: Command) -> str:
    options = [name for option in (*command.options, *command.lent) for name in option.names]
    many = [name for option in (*command.options, *command.lent) if option.many for name in option.names]
    fields = {
        "commands": " ".join(each.name for each in command.commands),
        "options": " ".join(options),
        "many": " ".join(many),
        "wraps": "yes" if command.wraps else "",
    }
    told = " ".join(f"{name}={shlex.quote(value)}" for name, value in fields.items())
    return f"    {shlex.quote(command.path)})\n        {told}\n        ;;\n"
