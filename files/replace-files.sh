# Functions that write files beside those that are there, and put them in their place together.
# Set before it:
#   new, old, kept  the endings of a candidate, of a file on its way out, and of a foreign file
#   signature       what the first line of every file of ours holds
#   wait_seconds    how long to wait for another run that writes in the same directory
set -eu
export LC_ALL=C
# Where the operator's home is closed, psql would complain about it.
cd /
die() { echo "$1" >&2; exit 1; }

# begin PATH...: alone in the first one's directory; candidates go away however the script ends,
# also when nobody listens to it any more.
begin() {
    directory=$(dirname "$1")
    [ -d "$directory" ] || die "$directory is not there, or is no directory; $1 cannot be written
HINT: ls -ld $directory"
    exec 9<"$directory"
    flock -w "$wait_seconds" 9 || die "another run has been writing to $directory for $wait_seconds s
HINT: fuser -v $directory, and run again when that run has ended"
    candidates=
    for path; do
        [ ! -d "$path" ] || die "$path is a directory, a file belongs there; nothing was changed
HINT: mv $path $path.away, then run again"
        candidates="$candidates$path$new
"
    done
    trap 'printf %s "$candidates" | while read -r one; do rm -f "$one"; done' EXIT
    trap 'exit 1' HUP INT PIPE TERM
}

# commit: from here on, the script runs to its end, even if the connection is lost.
commit() { trap '' HUP INT PIPE TERM; }

# attempt PATH COMMAND...: or say which file it was, and why.
attempt() {
    attempted=$1
    shift
    said=$("$@" 2>&1) || die "$attempted cannot be written: $said
HINT: findmnt -T $attempted; df -h $(dirname "$attempted")"
}

# A service may own the directory: whatever is written is a new file, never what a link of the
# service leads to.

# candidate PATH USER:GROUP MODE BASE64: never wider than its mode, whole, and on the disk.
candidate() { attempt "$1" write_candidate "$@"; }
write_candidate() {
    umask 077 && set -C && rm -f "$1$new" && printf %s "$4" | base64 -d >"$1$new" &&
        chown -h "$2" "$1$new" && chmod "$3" "$1$new" && sync "$1$new"
}

# copied PATH USER:GROUP MODE SOURCE: a candidate whose content is on this host already.
copied() { attempt "$1" write_copied "$@"; }
write_copied() {
    umask 077 && rm -f "$1$new" && cp "$4" "$1$new" && chown -h "$2" "$1$new" &&
        chmod "$3" "$1$new" && sync "$1$new"
}

# likeness PATH BASE64: a candidate with the owner and the mode of the file that is there.
likeness() { attempt "$1" write_likeness "$@"; }
write_likeness() {
    rm -f "$1$new" && cp -p "$1" "$1$new" &&
        printf %s "$2" | base64 -d | dd of="$1$new" oflag=nofollow status=none && sync "$1$new"
}

# copy PATH COPY [OPTION...]: all of a file, or nothing.
copy() { attempt "$2" write_copy "$@"; }
write_copy() {
    from=$1 to=$2
    shift 2
    cp -a --remove-destination "$@" -T "$from" "$to" || { rm -f "$to"; return 1; }
}

# replace PATH...: by the candidates, all of them or none. What is not ours is kept beside it.
replace() {
    commit
    for path; do
        rm -f "$path$old"
        [ -e "$path" ] || [ -L "$path" ] || continue
        if [ -L "$path" ] || ! head -n 1 "$path" | grep -q "$signature"; then
            copy "$path" "$path$kept" --backup=numbered
        fi
        copy "$path" "$path$old"
    done
    for path; do
        said=$(mv -fT "$path$new" "$path" 2>&1) || {
            stuck=$path
            put_back "$@"
            die "$stuck cannot be replaced: $said; all files are as they were
HINT: findmnt $stuck; lsattr $stuck"
        }
    done
    for path; do rm -f "$path$old"; done
}

# put_back PATH...: those that were replaced before the one that is stuck.
put_back() {
    undo=yes
    for path; do
        [ "$path" != "$stuck" ] || undo=no
        if [ "$undo" = no ]; then rm -f "$path$old"
        elif [ -e "$path$old" ] || [ -L "$path$old" ]; then mv -fT "$path$old" "$path"
        else rm -f "$path"
        fi
    done
}
