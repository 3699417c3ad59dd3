#!/usr/bin/env bash
# The GPU tier of chapter 08: all that the CPU tier leaves out, at 224 px with three seeds or draws.
#
#     bash experiments/dogs_gpu.sh DATA
#
# DATA is a folder with Stanford Dogs as datasets.stanford_dogs takes it. A network whose weights
# lie there as NAME_imagenet.safetensors starts from these, any other from torchvision's, which
# are downloaded. Run it from a clean checkout, so that the commit in the records means something.
#
# The most wanted records come first. What was interrupted continues, and what was finished comes
# back in a minute: call it again after a crash. Checkpoints lie in the cache folder (TLHELPERS_CACHE
# moves it; tens of gigabytes in the end) and may go when the records are saved. The benchmarks are
# not resumed. PYTHON names another interpreter.
set -euo pipefail

if [[ $# -ne 1 || ! -d $1 ]]; then
    echo "usage: bash experiments/dogs_gpu.sh DATA    (a folder with the photographs)" >&2
    exit 2
fi
data=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}

if ! "$python" -c 'import sys; from tlhelpers import runtime; sys.exit(runtime.best_device().type == "cpu")'
then
    echo "no accelerator that torch can use: on a CPU, run the scripts one by one" >&2
    exit 1
fi

step() {
    echo
    echo "== $*"
    "$python" "$@"
}

experiment() {
    local script=$1
    shift
    step "experiments/dogs_$script.py" --data "$data" --size 224 --seeds 3 "$@"
}

networks=(resnet18 mobilenet_v2 resnet50 squeezenet1_1)

# What the quoted text says, and its rivals, for the network that it names.
experiment recipe --architecture resnet18
experiment scratch --architecture resnet18
experiment lp_ft --architecture resnet18
experiment labels --architecture resnet18 --labels 1 2 5 10 20 50 90

# The other networks.
experiment recipe --architecture "${networks[@]:1}"
experiment lp_ft --architecture "${networks[@]:1}"
experiment scratch --architecture mobilenet_v2
experiment labels --architecture mobilenet_v2 --labels 1 2 5 10 20 50 90
experiment ablation --architecture resnet18 --epochs 6
experiment scratch --architecture resnet50
experiment scratch --architecture squeezenet1_1

# What a longer run from scratch still gains.
experiment scratch --architecture resnet18 mobilenet_v2 resnet50 --epochs 240

# The rest.
experiment labels --architecture resnet50 --labels 1 2 5 10 20 50 90
experiment ablation --architecture "${networks[@]:1}" --epochs 6

# How fast it is, against lightning (benchmarks/requirements.txt).
fastai=() lightning=()
"$python" -c 'import fastai' 2>/dev/null || fastai=(--no-fastai)
"$python" -c 'import lightning' 2>/dev/null || lightning=(--no-lightning)
step benchmarks/epoch.py --data "$data" --record "${fastai[@]}" "${lightning[@]}"
step benchmarks/time_to_accuracy.py --data "$data" --record "${fastai[@]}" "${lightning[@]}"
step benchmarks/extract.py --data "$data" "${fastai[@]}"
step benchmarks/train_small.py "${fastai[@]}"
