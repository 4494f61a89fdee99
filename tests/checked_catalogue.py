"""A catalogue of few steps that has every shape a check must tell apart, and what is to be found in it."""

from __future__ import annotations

from pathlib import Path

from catalogues import STEPS, write_step

TOKEN = "hf_" + "a1B2c3D4e5F6g7H8i9J0k1L2"
SFT = """\
run:
  env:
    container_image: nvcr.io/nvidia/nemo:26.04
    nodes: 2
    mounts:
      - ${auto_mount:git+https://github.com/NVIDIA/Bridge.git@0123abc,/opt/Bridge}
      - /lustre/scratch:/scratch
    env_vars: {UB_SKIPMC: "1", HF_HUB_OFFLINE: "0"}
hf_model_path: nvidia/Nano-30B-BF16
tokenizer: {name: "${hf_model_path}"}
recipe: {_target_: megatron.bridge.recipes.nano, schedule: linear/warmup}
dataset:
  packed_train_data_path: ${oc.env:SFT_PACKED_DIR,./output/packed/*.parquet}
  prompt_file: null
checkpoint:
  save: ${oc.env:SFT_OUTPUT_DIR}/model
  pretrained_checkpoint: null
logger:
  log_dir: /lustre/data/logs
  wandb_enabled: ${oc.decode:${oc.env:WANDB_ENABLED,true}}
  name: ${oc.env:WANDB_NAME,sft}
"""
SFT_TOML = """\
[step]
id = "sft/one"
[[consumes]]
type = "packed_parquet"
[[consumes]]
type = "checkpoint_megatron"
required = true
[[consumes]]
type = "checkpoint_lora"
required = false
"""
SDG = """\
defaults: base.yaml
models:
  - {alias: text, model: openai/gpt-oss, provider: nvidia}
  - {alias: own, model: org/own, provider: inside}
judge: {model: org/judge, base_url: "http://vllm.site:8000/v1"}
server: {url: "https://integrate.api.example/v1", api_key_env: NVIDIA_API_KEY, api_key: ""}
nmt: {server_url: "http://localhost:5000"}
target: {url: "${oc.env:MODEL_URL,''}", api_key_name: MODEL_KEY}
seed: {path: /nemo_run/code/README.md}
docs: see https://docs.example/page
prompt: |
  Visit https://example.com and write about org/name, ${not.an.interpolation}.
"""
SDG_BASE = """\
language: ???
broken: ${nowhere.at.all}
dedup: {enabled: false, model_identifier: sentence-transformers/mini}
credentials: {api_key: 0123456789abcdef, hf_token: HF_TOKEN, max_tokens: 1024, key_file: /run/secrets/key}
"""
RL = """\
policy: {model_name: "${oc.env:POLICY,meta-llama/Tiny}"}
data:
  train: {data_path: /path/to/train.jsonl}
  default: {dataset_name: HelpSteer3}
  other: {dataset_name: NemoGymDataset}
prepared:
  manifest_path: /lustre/data/manifest.json
  train: {data_path: /path/to/train.jsonl}
checkpoint_path: ${art:model,path}
input_dir: /lustre/data/corpus
deep: {input_dir: /lustre/data/missing}
results: {output_dir: /lustre/out/results}
resolve_hf_placeholders: true
sections: {lepton_base: {pip_extras: [typer, rich], container_image: nvcr.io/nvidia/nemo:26.04}}
proxy: {git_remote: "https://user:s3cr3tword@git.example/x"}
"""
RL_TOML = """\
[step]
id = "rl/two"
[[consumes]]
type = "benchmark_source_corpus"
[[consumes]]
type = "checkpoint_hf"
"""


BYOB = """\
stage: translate
dataset_path: /lustre/data/benchmark.parquet
"""
BYOB_TOML = """\
[step]
id = "byob/mcq"
[[consumes]]
type = "benchmark_source_corpus"
[[consumes]]
type = "benchmark_parquet"
required = false
"""
OPTIMIZER = "https://git.example/Optimizer.git"
CLONING = f"""\
REPO = "{OPTIMIZER}"
def ensure(folder):
    run(["git", "clone", "--depth", "1", REPO, str(folder)])
    run(["git", "-C", str(folder), "checkout", "main"])
"""


def write_checked_catalogue(root: Path) -> Path:
    """Write the catalogue and return its root."""
    sft = write_step(root, "sft/one", configs={"tiny": SFT})
    (sft / "step.toml").write_text(SFT_TOML)
    sdg = write_step(root, "sdg/data", configs={"tiny": SDG, "base": SDG_BASE})
    (sdg / "config" / "secret.yaml").write_text(f"defaults: base.yaml\nhub: {{auth: {TOKEN}}}\n")
    rl = write_step(root, "rl/two", configs={"tiny": RL})
    (rl / "step.toml").write_text(RL_TOML)
    write_step(root, "broken/inherits", configs={"tiny": "defaults: gone.yaml\n"})
    write_step(root, "data_prep/pack", configs={"tiny": "output_dir: ./out/x\n"})
    (root / STEPS / "data_prep/pack/data").mkdir()
    (root / STEPS / "data_prep/pack/data/blend_tiny.json").write_text('{"datasets": [\n {"path": "hf://org/set"}]}\n')
    (write_step(root, "byob/mcq", configs={"translate": BYOB}) / "step.toml").write_text(BYOB_TOML)
    write_step(root, "optimize/prune", configs={"tiny": "a: 1\n"}, source=CLONING)
    (root / "README.md").write_text("a catalogue\n")
    return root
