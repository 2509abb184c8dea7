#!/usr/bin/env bash
# On a machine with a GPU and no network: build, test with compiled kernels, tune, measure.
#   bash bench/gpu.sh OUT build tests tune record
# Stages run in the order given, each for at most its number of seconds; logs and results go to the folder OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
shift
mkdir -p "$out"
export PYTHONUNBUFFERED=1

build() { timeout 150 python3 -m pip install --quiet --no-build-isolation --no-deps -e . && python3 -m ipfast doctor; }

# Warnings of versions of torch and triton that are not those of the tests are no failures here.
tests() {
    timeout -s INT "${TESTS_SECONDS:-240}" python3 -m pytest -n "${WORKERS:-14}" --dist worksteal --timeout 120 --maxfail 80 \
        -W ignore -q ${TESTS:-tests} -p no:cacheprovider > "$out/tests.log" 2>&1
    tail -n "${TAIL:-60}" "$out/tests.log" | cut -c1-220
}

tune() {
    timeout -s INT "${TUNE_SECONDS:-150}" python3 -m bench tune --out "$out/tune.jsonl" ${KERNELS:-} > "$out/tune.log" 2>&1
    tail -n 100 "$out/tune.log" | cut -c1-200
}

record() {
    for case in "head" "ensemble --members 5" "vocab" "model --no-jobs --network resnet --network gpt2"; do
        # shellcheck disable=SC2086
        timeout 120 python3 -m bench $case --device cuda 2>&1 | tee -a "$out/record.log"
    done
    cp bench/results/*.jsonl "$out"
}

for stage in "$@"; do
    printf '\n== %s (%s s)\n' "$stage" "$SECONDS"
    "$stage"
done
printf '\n== done (%s s)\n' "$SECONDS"
