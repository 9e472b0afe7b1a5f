# What every job begins with: the same names and times wherever and whenever it runs.
set -eu
export DEBIAN_FRONTEND=noninteractive HOME=/root LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
export GIT_AUTHOR_NAME=A GIT_COMMITTER_NAME=A GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_EMAIL=a@example.org
umask 022

must_be() {
    if [ "$1" != "$2" ]; then
        echo "is: $1" >&2
        echo "must be: $2" >&2
        exit 1
    fi
}
