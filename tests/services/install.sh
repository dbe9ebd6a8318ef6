#!/bin/sh
# Installs the real servers that tests start on loopback, from Debian's packages. Only tests need them. As root on Debian it
# installs what is missing; anybody else is told what to install, and the tests that need it skip with that reason.
set -u
say() { printf '%s\n' "$*" >&2; }

# binary:package, one pair a server. Debian starts some of them after the installation; tests start their own instead.
WANTED="prometheus:prometheus redis-server:redis-server"

# A real API server for the tests of the cluster adapter. In continuous integration they must not be skipped.
bash "$(dirname "$0")/kube_apiserver.sh" >/dev/null || [ "${CI:-}" != true ] || exit 1

missing=""
for pair in $WANTED; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  say "note: some tests need servers that are not here and will be skipped:$missing"
  say "      On Debian: sudo apt-get install --no-install-recommends$missing"
  exit 0
fi

say "installing for the tests:$missing"
# A policy of 101 keeps Debian from starting the services: nothing listens that no test has started.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes; fi
apt-get -qq update >/dev/null &&
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
status=$?
[ -z "$made" ] || rm -f "$policy"
[ "$status" = 0 ] || say "note: the installation failed (apt-get ended with $status): the tests that need$missing will be skipped"
exit 0
