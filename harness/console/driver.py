r"""The driver: the shell script in the guest that runs the commands of a console.

Under emulation a fork costs 2 ms and a byte on a serial line about 15 us; nothing else here costs
as much. So the driver uses builtins and forks nothing for a command with little output: ``eval``
runs the command, its output goes to a file in memory, and ``read`` reads that file. Each command
has a file of its own, so that a background job cannot write into the result of a later command.
``cat`` sends output that is long, output that contains a NUL, and all output in shells whose
``read`` lacks the options (dash).

The terminal is in a raw mode that still delivers lines, without echo: it edits nothing, maps only
LF to CR LF, and Ctrl-C still interrupts. Input arrives in lines because bash reads ahead: it would
take bytes that it had read of a second line for the start of the next file that it reads. The
speed is set to 115200 because QEMU's 16550 holds the last bytes of input back for four character
times, which is 4 ms at Linux's default of 9600 (QEMU ``hw/char/serial.c``, ``fifo_timeout_timer``).

A file system without room for the output is noticed after commands whose output is empty or long: the
rest fits into the block that it began. The frame then has a status above 255: :data:`FULL`,
:data:`NO_FILE`.

An outer loop restarts the driver when a command has ended it (``exit``, a syntax error, Ctrl-C).
The exit status of the driver is then the status of the command, and the file holds its output.

Requests:

* ``x TAG .CMD.``: run a command.
* ``a TAG .TEXT.``, ``p TAG .TEXT.``: prepend a line, or a part of a line, to the next command.
* ``r TAG ..``: send the result again; ``<TAG ???>`` answers if there is none.
* ``s TAG .TAG2,OFFSET,LENGTH.``: send a piece of the result, in a frame with the tag TAG2.
* ``q TAG ..``: end the driver.

The dots protect leading and trailing blanks, which ``read`` removes.
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
"""The line that is typed at the prompt; it is short, and waits for the rest.

The leading blank keeps it out of the shell's history.
"""

# Names begin with two underscores because commands share the shell. The script is quoted with '.
_DRIVER: Final = (
    "__D=$1;__r=$2;__n=;__d=;__e=;__b=;__o=;__s=0;__k=0;__z=;"
    '__l=$(printf "\\n.");__l=${__l%.};__m=$(printf "\\r");'
    # A trace of the driver (`set -x`) would corrupt its frames.
    'exec 2>/dev/null;printf "a\\n" >"$__D/.t";'
    '{ IFS= read -r -n 9 -d "" __o <"$__D/.t";};[ "$__o" = "a$__l" ]&&__z=1;'
    # Set the status of the frame, for output that is empty or long: is all of it in the file? A write
    # that found no room left the file at the end of a block. `printf` is no special builtin, so a
    # redirection that fails does not end the shell.
    '__u(){ if [ ! -e "$__D/$__i" ];then __v=NOFILE;command -p mkdir -p "$__D";'
    'elif printf . >"$__D/.u";then printf "" >"$__D/.u";'
    'elif [ "$(($(command -p wc -c <"$__D/$__i")%512))" = 0 ];then __v=$((__s+FULL));fi;};'
    # Send the frame of the result. If this driver did not run the command, the status is the exit
    # status of the driver before it.
    '__f(){ [ "$__n" = "$__d" ]||{ __s=$__r;__d=$__n;};__o=;__t=;__v=$__s;'
    'if [ -s "$__D/$__i" ];then '
    '{ [ "$__z" ]&&! IFS= read -r -n 128 -d "" __o <"$__D/$__i";}||__t=1;'
    'case $__o in *"$__m"*)__t=1;esac;else __u;fi;'
    'if [ "$__t" ];then __k=100;__u;'
    '__o=$(command -p cksum <"$__D/$__i")||__o=" $(($(command -p wc -c <"$__D/$__i")))";'
    'printf "<%s %s %s %s\\n" "$__n" "$__v" "${__o#* }" "${__o% *}";'
    'command -p cat "$__D/$__i";'
    'printf "%s %s %s %s>\\n" "$__n" "$__v" "${__o#* }" "${__o% *}";'
    # In the C locale ${#...} counts bytes.
    "else local LC_ALL=C;"
    'printf "<%s %s %s\\n%s%s %s %s>\\n" '
    '"$__n" "$__v" "${#__o}" "$__o" "$__n" "$__v" "${#__o}";fi;};'
    # Send a piece of the result.
    '__g(){ printf "<%s 0 %s\\n" "$1" "$3";'
    'command -p tail -c "+$(($2+1))" "$__D/$__i"|command -p head -c "$3";'
    'printf "%s 0 %s>\\n" "$1" "$3";};'
    'if [ "$2" ];then printf "<%s up>\\n" TAG;else printf "<%s 0 0\\n%s 0 0>\\n" TAG TAG;fi;'
    # The end of input means that the line hung up, so the outer loop must end as well.
    '__q(){ command -p mkdir -p "$__D";printf "" >"$__D/.q"||command -p mv -f "$__D/.t" "$__D/.q";};'
    'while IFS=" " read -r __p __n __c||{ __q;! :;};do '
    # The name of the file lacks the secret half of the tag: a program can see its own output file.
    "__i=${__n%%.*};__c=${__c#.};__c=${__c%.};"
    "case $__p in "
    'x)if [ ! -e "$__D/$__i" ];then '
    '[ "$__k" -gt 99 ]&&{ command -p rm -f "$__D"/*;__k=0;};__k=$((__k+1));'
    '[ "$__n" = "$__e" ]&&__c=$__b$__c;__e=;__b=;'
    'printf "$ %s\\n" "${__c%%"$__l"*}";'
    # Without `command`, a file that cannot be created would end a POSIX shell.
    'command eval "$__c" >"$__D/$__i" 2>&1 </dev/null;__s=$?;__d=$__n;fi;__f;;'
    'a)[ "$__n" = "$__e" ]||__b=;__e=$__n;__b=$__b$__c$__l;;'
    'p)[ "$__n" = "$__e" ]||__b=;__e=$__n;__b=$__b$__c;;'
    'r)if [ -e "$__D/$__i" ];then __f;else printf "<%s ???>\\n" "$__n";fi;;'
    's)__o=${__c#*,};__g "${__c%%,*}" "${__o%,*}" "${__o#*,}";;'
    "q)__q;break;;"
    "esac;done"
)

FULL: Final = 300
"""Added to a status: the file system of the results was full, and the output may be incomplete."""

NO_FILE: Final = 999
"""In the place of a status: the file for the output could not be created, or is gone."""

_KEEPER: Final = (
    'D=;for i in /run /dev/shm /tmp "$HOME";do D=$i/.harness-TAG;mkdir -m 700 "$D"&&{'
    ' printf "a\\n" >"$D/.t"&&break;rm -r "$D";};D=;done'
    ' 2>/dev/null;[ "$D" ]||{ printf "<%s 1 0\\n%s 1 0>\\n" TAG TAG;exit;};'
    'trap : INT;r=;while :;do "$0" -c \'DRIVER\' sh "$D" "$r";r=$?;'
    '{ [ -e "$D/.q" ]||! mkdir -p "$D";}&&break;done;rm -rf "$D"'
)


def driver_script(tag: str) -> str:
    """Return the line that :data:`BOOTSTRAP` waits for.

    Args:
        tag: The tag of the frame that the driver answers with. It also names the directory of the
            results, and the line that the driver prints when it restarts.
    """
    assert not set("'\n") & set(_DRIVER)
    driver = _DRIVER.replace("NOFILE", str(NO_FILE)).replace("FULL", str(FULL))
    return _KEEPER.replace("DRIVER", driver).replace("TAG", tag)
