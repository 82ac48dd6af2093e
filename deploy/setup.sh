#!/usr/bin/env bash
# Installs what building saesweep needs and is not there yet: distribution packages (packages.txt)
# and LibTorch and the CUDA compiler out of pinned wheels (wheels.txt, into .deps/). For Debian 12 or
# newer, as root or with sudo.
#
#   deploy/setup.sh [--with-dev] [--with-cuda] [--without-torch] [--check]
#     --with-dev       also what linting and fuzzing need
#     --with-cuda      also cuBLAS, with which saesweep-task trains on an NVIDIA GPU (600 MB more)
#     --without-torch  no wheels: enough for the presets that build no saesweep-task
#     --check          install nothing; say what is missing and exit 1 if anything is
#
# Silent and immediate when nothing is missing. Running it twice, or twice at once, is fine. .deps/ is
# whole or absent: wheels are installed beside it and moved into place.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
deps=$root/.deps

with_dev=0 with_cuda=0 with_torch=1 check_only=0
for argument in "$@"; do
  case $argument in
    --with-dev) with_dev=1 ;;
    --with-cuda) with_cuda=1 ;;
    --without-torch) with_torch=0 ;;
    --check) check_only=1 ;;
    *)
      echo "setup: unknown argument $argument; there are --with-dev, --with-cuda, --without-torch and" \
        "--check" >&2
      exit 2
      ;;
  esac
done

say() { echo "setup: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# Shows the end of a log that explains a failure.
die_with_log() {
  local log=$1
  shift
  tail -n 15 "$log" | sed 's/^/  | /' >&2
  rm -f "$log"
  die "$*"
}

# ---- what is missing -----------------------------------------------------------------------------

wanted_packages() {
  local section="" name rest
  while read -r name rest; do
    case $name in
      "" | "#"*) ;;
      "["*) section=$name ;;
      *) if [[ $section == "[build]" || $with_dev == 1 ]]; then echo "$name"; fi ;;
    esac
  done < "$here/packages.txt"
}

wheels() {
  local section="" wheel
  while read -r wheel; do
    case $wheel in
      "" | "#"*) ;;
      "["*) section=$wheel ;;
      *) if [[ $section == "[build]" || $with_cuda == 1 ]]; then echo "$wheel"; fi ;;
    esac
  done < "$here/wheels.txt"
}

missing_packages() {
  local -a wanted alternatives
  local -A installed=()
  local name status entry
  mapfile -t wanted < <(wanted_packages)
  # One call for all; it fails when one of them is unknown, which is an answer too. A package of
  # another architecture does not count twice.
  while read -r name status; do
    if [[ $status == installed ]]; then installed[${name%%:*}]=1; fi
  done < <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]//|*/}" \
    "${wanted[@]##*|}" 2> /dev/null || true)
  for entry in "${wanted[@]}"; do
    IFS='|' read -r -a alternatives <<< "$entry"
    for name in "${alternatives[@]}"; do
      if [[ -n ${installed[$name]:-} ]]; then continue 2; fi
    done
    echo "$name"
  done
}

# Pinned wheels that `directory` does not hold. pip writes a wheel's dist-info with its files.
wheels_missing_in() {
  local directory=$1 wheel name
  while read -r wheel; do
    name=${wheel%%==*}
    [[ -f $directory/${name//-/_}-${wheel##*==}.dist-info/RECORD ]] || echo "$wheel"
  done < <(wheels)
}

# True if `directory` holds another version of one of these wheels.
holds_others() {
  local directory=$1 wheel name
  shift
  for wheel in "$@"; do
    name=${wheel%%==*}
    if compgen -G "$directory/${name//-/_}-*.dist-info" > /dev/null; then return 0; fi
  done
  return 1
}

holds_wheels() {
  local directory=$1
  [[ -z $(wheels_missing_in "$directory") ]] || return 1
  [[ -f $directory/torch/lib/libtorch_cpu.so && -f $directory/torch/include/ATen/ATen.h ]]
}

needs_wheels() { [[ $with_torch == 1 ]] && ! holds_wheels "$deps"; }

# ---- installing ----------------------------------------------------------------------------------

as_root() {
  if [[ $EUID == 0 ]]; then
    env DEBIAN_FRONTEND=noninteractive "$@"
  else
    sudo env DEBIAN_FRONTEND=noninteractive "$@"
  fi
}

install_packages() {
  local log
  if [[ $EUID != 0 ]] && ! command -v sudo > /dev/null; then
    die "run as root, or install sudo; missing: apt-get install $*"
  fi
  log=$(mktemp)
  say "installing packages: $*"
  local -a install=(apt-get install -y -q --no-install-recommends
    -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@")
  # The lists are fetched only if they are absent or too old to be of use.
  if as_root "${install[@]}" > "$log" 2>&1; then
    rm -f "$log"
    return
  fi
  if ! as_root apt-get update -q -o DPkg::Lock::Timeout=300 -o APT::Update::Error-Mode=any \
    > "$log" 2>&1; then
    die_with_log "$log" "cannot fetch the package lists (is there a network?); missing: $*"
  fi
  as_root "${install[@]}" > "$log" 2>&1 ||
    die_with_log "$log" "apt-get could not install: $*"
  rm -f "$log"
}

# A python3 that has pip, or nothing.
find_python() {
  local python
  for python in python3 /usr/bin/python3 /usr/local/bin/python3; do
    if command -v "$python" > /dev/null && "$python" -m pip --version > /dev/null 2>&1; then
      echo "$python"
      return
    fi
  done
}

install_wheels() {
  local python log fresh=$deps.tmp
  local -a fetched
  python=$(find_python)
  if [[ -z $python ]]; then
    install_packages python3-pip
    python=$(find_python)
    [[ -n $python ]] || die "python3-pip is installed, but python3 -m pip does not run"
  fi
  # What is there and right stays, as links to the same files.
  mapfile -t fetched < <(wheels_missing_in "$deps")
  if [[ -d $deps ]] && holds_others "$deps" "${fetched[@]}"; then mapfile -t fetched < <(wheels); fi
  say "fetching into .deps (LibTorch is 530 MB, the CUDA compiler 100, cuBLAS 600): ${fetched[*]}"
  rm -rf "$fresh"
  mkdir -p "$fresh/.pip" "$fresh/site"
  if [[ -d $deps && ${#fetched[@]} != $(wheels | wc -l) ]]; then cp -al "$deps/." "$fresh/site"; fi
  log=$(mktemp)
  # Every wheel names the oldest glibc it runs on, and pip takes the names literally: all that Debian
  # 12 satisfies are listed.
  local -a platforms=(--platform "manylinux2014_$(uname -m)")
  local glibc
  for glibc in {17..36}; do platforms+=(--platform "manylinux_2_${glibc}_$(uname -m)"); done
  # Named platforms make the choice of wheel independent of this machine's Python, of which nothing
  # is used. TMPDIR: pip unpacks there, and /tmp may be small.
  if ! TMPDIR=$fresh/.pip PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
    --only-binary=:all: --implementation cp --python-version 3.11 \
    "${platforms[@]}" \
    --target "$fresh/new" "${fetched[@]}" > "$log" 2>&1; then
    rm -rf "$fresh"
    die_with_log "$log" "pip could not fetch the wheels of deploy/wheels.txt (is there a network," \
      "and room for 3 GB?); without LibTorch, configure with -DSAESWEEP_WITH_TORCH=OFF"
  fi
  rm -f "$log"
  cp -al --remove-destination "$fresh/new/." "$fresh/site"
  if ! holds_wheels "$fresh/site"; then
    rm -rf "$fresh"
    die "pip finished, but libtorch_cpu.so or its headers are not where they belong"
  fi
  # What was there is of other versions; between the two renames .deps is absent, never mixed.
  rm -rf "$deps.old"
  if [[ -e $deps ]]; then mv "$deps" "$deps.old"; fi
  mv "$fresh/site" "$deps"
  rm -rf "$fresh" "$deps.old"
}

# ---- main ----------------------------------------------------------------------------------------

# Once it was wanted, it is.
if compgen -G "$deps/nvidia_cublas-*.dist-info" > /dev/null; then with_cuda=1; fi

command -v dpkg-query > /dev/null ||
  die "this is not Debian; install what deploy/packages.txt lists, and the wheels of" \
    "deploy/wheels.txt with: pip install --target .deps --no-deps $(wheels | tr '\n' ' ')"

mapfile -t missing < <(missing_packages)
if [[ ${#missing[@]} == 0 ]] && ! needs_wheels; then exit 0; fi

if [[ $check_only == 1 ]]; then
  if [[ ${#missing[@]} != 0 ]]; then say "missing packages: ${missing[*]}"; fi
  if needs_wheels; then say "missing wheels: $(wheels_missing_in "$deps" | tr '\n' ' ')"; fi
  exit 1
fi

# One at a time; the one that waited looks again. The lock is on this file, so nothing is left over.
exec 9< "${BASH_SOURCE[0]}"
flock 9
mapfile -t missing < <(missing_packages)
if [[ ${#missing[@]} != 0 ]]; then install_packages "${missing[@]}"; fi
if needs_wheels; then install_wheels; fi
