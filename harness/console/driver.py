r"""The part of the console that runs in the guest: shell text, of builtins where it must be fast.

Under emulation a fork costs 2 ms, a byte on a serial line some 15 us: more than all else here. So
the driver forks nothing for a command with little output: it is run by ``eval``, its output goes
to a file in memory (a new one for each command, so that a background job cannot write into
another's result), and ``read`` takes it from there. Output that is long, has a NUL, or meets a
shell whose ``read`` cannot do that (dash) is sent by ``cat``.

The terminal is set raw but for lines, without echo: no editing, nothing expanded but LF to CR LF,
and Ctrl-C alone still interrupts. Input comes in lines because bash reads ahead: what it had read
of a second line, it would take for the beginning of the next file it reads. Its speed is set to
115200: QEMU's 16550 holds the last bytes of input back for four character times, which is 4 ms at
Linux's default of 9600 (QEMU ``hw/char/serial.c``, ``fifo_timeout_timer``).

An outer loop starts the driver again when a command has ended it (``exit``, a syntax error,
Ctrl-C); its exit status is then the command's, and the file has the output.

Requests: ``x TAG .CMD.`` run; ``a TAG .TEXT.``, ``p TAG .TEXT.`` put a line, a part of one, before
the next command; ``r TAG ..`` send the result again; ``s TAG .TAG2,OFFSET,LENGTH.`` send a piece
of it; ``q TAG ..`` end. The dots keep ``read`` from taking blanks off the ends. A result that is
asked for and unknown is answered ``<TAG ???>``.
"""

from __future__ import annotations

from typing import Final

BOOTSTRAP: Final = (
    " g=$(stty -g);stty 115200 raw icanon isig -iexten -echo opost onlcr"
    " quit undef susp undef eof undef erase undef kill undef;"
    '${BASH:-sh} -c \'printf "<%s 0 0\\n%s 0 0>\\n" TAG TAG;'
    # A terminal's late answer to the prompt may come first.
    'while IFS= read -r s;do case $s in D=*)eval "$s";exit;;esac;done\''
    ' ${BASH:-sh};stty "$g" 2>/dev/null'
)
"""Typed at the prompt, hence short: waits for the rest. The blank keeps it out of a history."""

# Names begin with two underscores: commands share the shell. It stands in single quotes.
_DRIVER: Final = (
    "__D=$1;__r=$2;__n=;__d=;__e=;__b=;__o=;__s=0;__k=0;__z=;"
    '__l=$(printf "\\n.");__l=${__l%.};__m=$(printf "\\r");'
    # A trace (`set -x`) of the driver would break its frames.
    'exec 2>/dev/null;mkdir -p "$__D";printf "a\\n" >"$__D/.t";'
    '{ IFS= read -r -n 9 -d "" __o <"$__D/.t";};[ "$__o" = "a$__l" ]&&__z=1;'
    # The frame of the result. Without the status, this driver is not the one that ran the command.
    '__f(){ [ "$__n" = "$__d" ]||{ __s=$__r;__d=$__n;};__o=;__t=;'
    'if [ -s "$__D/$__i" ];then '
    '{ [ "$__z" ]&&! IFS= read -r -n 128 -d "" __o <"$__D/$__i";}||__t=1;'
    'case $__o in *"$__m"*)__t=1;esac;fi;'
    'if [ "$__t" ];then __k=100;'
    '__o=$(command -p cksum <"$__D/$__i")||__o=" $(($(command -p wc -c <"$__D/$__i")))";'
    'printf "<%s %s %s %s\\n" "$__n" "$__s" "${__o#* }" "${__o% *}";'
    'command -p cat "$__D/$__i";'
    'printf "%s %s %s %s>\\n" "$__n" "$__s" "${__o#* }" "${__o% *}";'
    # In the C locale ${#...} counts bytes.
    "else local LC_ALL=C;"
    'printf "<%s %s %s\\n%s%s %s %s>\\n" '
    '"$__n" "$__s" "${#__o}" "$__o" "$__n" "$__s" "${#__o}";fi;};'
    # A piece of it.
    '__g(){ printf "<%s 0 %s\\n" "$1" "$3";'
    'command -p tail -c "+$(($2+1))" "$__D/$__i"|command -p head -c "$3";'
    'printf "%s 0 %s>\\n" "$1" "$3";};'
    'if [ "$2" ];then printf "<%s up>\\n" TAG;else printf "<%s 0 0\\n%s 0 0>\\n" TAG TAG;fi;'
    # At the end of input (the line hung up) there is no starting again.
    'while IFS=" " read -r __p __n __c||{ : >"$__D/.q";! :;};do '
    # The file is not named by the whole tag: a program can see where its output goes.
    "__i=${__n%%.*};__c=${__c#.};__c=${__c%.};"
    "case $__p in "
    'x)if [ ! -e "$__D/$__i" ];then '
    '[ "$__k" -gt 99 ]&&{ command -p rm -f "$__D"/*;__k=0;};__k=$((__k+1));'
    '[ "$__n" = "$__e" ]&&__c=$__b$__c;__e=;__b=;'
    'printf "$ %s\\n" "${__c%%"$__l"*}";'
    'eval "$__c" >"$__D/$__i" 2>&1 </dev/null;__s=$?;__d=$__n;fi;__f;;'
    'a)[ "$__n" = "$__e" ]||__b=;__e=$__n;__b=$__b$__c$__l;;'
    'p)[ "$__n" = "$__e" ]||__b=;__e=$__n;__b=$__b$__c;;'
    'r)if [ -e "$__D/$__i" ];then __f;else printf "<%s ???>\\n" "$__n";fi;;'
    's)__o=${__c#*,};__g "${__c%%,*}" "${__o%,*}" "${__o#*,}";;'
    'q): >"$__D/.q";break;;'
    "esac;done"
)

_KEEPER: Final = (
    'D=;for i in /run /dev/shm /tmp "$HOME";do D=$i/.harness-TAG;mkdir -m 700 "$D"&&break;D=;done'
    ' 2>/dev/null;[ "$D" ]||{ printf "<%s 1 0\\n%s 1 0>\\n" TAG TAG;exit;};'
    'trap : INT;r=;while :;do "$0" -c \'DRIVER\' sh "$D" "$r";r=$?;'
    '[ -e "$D/.q" ]&&break;done;rm -rf "$D"'
)


def driver_script(tag: str) -> str:
    """Return the line that :data:`BOOTSTRAP` waits for.

    Args:
        tag: Of the frame it answers with; names its directory, and its line when it starts again.
    """
    assert not set("'\n") & set(_DRIVER)
    return _KEEPER.replace("DRIVER", _DRIVER).replace("TAG", tag)
