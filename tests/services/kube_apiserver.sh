#!/bin/bash
# Provides kube-apiserver and etcd for the tests and prints the folder that holds both.
#
# KUBEBUILDER_ASSETS wins, as everywhere. Without it, on Debian as root, kube-apiserver is built once a machine (3 to 10 minutes) from
# Debian's own source package and kept in the user's cache; etcd is Debian's package. Where neither is possible it ends with 1 and
# says why; the tests that need a real API server then skip with that reason. With `--check` it only looks and builds nothing.
set -u
say() { printf '%s\n' "$*" >&2; }
fail() { say "no kube-apiserver for the tests: $*"; exit 1; }

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  for wanted in kube-apiserver etcd; do
    [ -x "$KUBEBUILDER_ASSETS/$wanted" ] || fail "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no executable $wanted"
  done
  printf '%s\n' "$KUBEBUILDER_ASSETS"
  exit 0
fi

cache="${XDG_CACHE_HOME:-$HOME/.cache}/pool-planner-tests/kube"
found() { [ -x "$cache/kube-apiserver" ] && command -v etcd >/dev/null 2>&1; }
if found; then printf '%s\n' "$cache"; exit 0; fi
[ "${1:-}" != --check ] || fail "not built yet (tests/services/kube_apiserver.sh builds it)"
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 ||
  fail "set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd (building one needs Debian and root)"

mkdir -p "$cache" || fail "cannot write $cache"
exec 9>"$cache/.lock"
flock -n 9 || { say "another process builds kube-apiserver; waiting for it"; flock 9; }
if found; then printf '%s\n' "$cache"; exit 0; fi

log="$cache/build.log"
work=$(mktemp -d "${TMPDIR:-/tmp}/kube-apiserver-build.XXXXXX") || fail "no temporary folder"
chmod 755 "$work"
child=""
clean() { [ -z "$child" ] || kill -- "-$child" 2>/dev/null; rm -rf "$work"; }
trap clean EXIT
trap 'exit 130' INT TERM HUP
started=$(date +%s)

# Runs a step in an own process group with a line every 20 s, so that nobody takes a long build for one that hangs.
step() {
  title=$1; shift
  say "kube-apiserver: $title"
  set -m
  "$@" >>"$log" 2>&1 9>&- &
  child=$!
  set +m
  ticks=0
  while kill -0 "$child" 2>/dev/null; do
    sleep 1; ticks=$((ticks + 1))
    [ $((ticks % 20)) != 0 ] || say "kube-apiserver: $title: $(($(date +%s) - started)) s so far"
  done
  wait "$child"; code=$?; child=""
  [ "$code" = 0 ] || { tail -n 15 "$log" >&2; fail "$title ended with $code (all of it: $log)"; }
}

: >"$log"
# An apt of its own: the deb entries of this machine as deb-src entries, with own lists. The machine's configuration stays as it is.
mkdir -p "$work/apt/parts" "$work/apt/lists/partial" "$work/source"
touch "$work/apt/sources.list"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ ! -f "$file" ] || sed -n 's/^deb[[:space:]]/deb-src /p' "$file" >>"$work/apt/sources.list"
done
for file in /etc/apt/sources.list.d/*.sources; do
  [ ! -f "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/apt/parts/$(basename "$file")"
done
sources() {
  apt-get -q -o "Dir::Etc::SourceList=$work/apt/sources.list" -o "Dir::Etc::SourceParts=$work/apt/parts" \
    -o "Dir::State::Lists=$work/apt/lists" "$@"
}
install_tools() {
  # A policy of 101 keeps Debian from starting etcd: nothing listens that no test has started.
  policy=/usr/sbin/policy-rc.d; made=""
  if [ ! -e "$policy" ]; then printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes; fi
  apt-get -q update &&
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
      dpkg-dev golang-go rsync jq golang-github-modern-go-reflect2-dev etcd-server
  installed=$?
  [ -z "$made" ] || rm -f "$policy"
  return $installed
}
missing=""
for pair in dpkg-source:dpkg-dev go:golang-go rsync:rsync jq:jq etcd:etcd-server; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
reflect2=/usr/share/gocode/src/github.com/modern-go/reflect2
[ -d "$reflect2" ] || missing="$missing golang-github-modern-go-reflect2-dev"
[ -z "$missing" ] || step "1/4 installing what builds it:$missing" install_tools

fetch_source() {
  sources update && cd "$work/source" && sources source --only-source kubernetes
}
step "2/4 fetching Debian's source package" fetch_source
tree=$(find "$work/source" -mindepth 1 -maxdepth 1 -type d -name 'kubernetes-*' | head -n 1)
[ -n "$tree" ] || fail "Debian's source package kubernetes unpacked to no folder"

prepare() {
  # The reflect2 in the vendor folder is older than Go 1.18 and segfaults on custom resources: Debian's own is newer.
  rm -rf "$tree/vendor/github.com/modern-go/reflect2" &&
    cp -r "$reflect2" "$tree/vendor/github.com/modern-go/reflect2" &&
    mkdir -p "$tree/.go/src/k8s.io" && ln -sfn "$tree" "$tree/.go/src/k8s.io/kubernetes"
}
step "3/4 preparing the tree" prepare
build() {
  cd "$tree/.go/src/k8s.io/kubernetes" &&
    GOPATH="$tree/.go" GOCACHE="$work/gocache" GOTMPDIR="$work" CGO_ENABLED=0 GO111MODULE=off make WHAT=cmd/kube-apiserver
}
step "4/4 building (once a machine; kept in $cache)" build
binary=$(find "$tree/_output" -type f -name kube-apiserver -perm -u+x | head -n 1)
[ -n "$binary" ] || fail "the build left no kube-apiserver (all of it: $log)"
install -m 755 "$binary" "$cache/.new" && mv "$cache/.new" "$cache/kube-apiserver" || fail "cannot write $cache"
say "kube-apiserver: built in $(($(date +%s) - started)) s: $("$cache/kube-apiserver" --version)"
printf '%s\n' "$cache"
