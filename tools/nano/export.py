"""Writes a training checkpoint in the layout of a released BTCChat model, and reads such a folder back.

    python export.py CHECKPOINT.pt TOKENIZER.model OUT_DIR

Weights are stored as bfloat16.  The tower gets one more block than is used (mm_vision_select_layer is -2) and the
pooling head of a SigLIP tower, both never read: a loader of the real layout expects them.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import captions
from model import Config, Nano

MAX_TOKENS = 1024


def _stored(tensor):
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.int64 else tensor.bfloat16()).contiguous().clone()


def _to_file_names(state):
    """State dict of Nano -> ({name: tensor} of tower, projector, language model)."""
    tower, projector, llm = {}, {}, {}
    for name, tensor in state.items():
        part, rest = name.split(".", 1)
        if part == "vision_tower":
            inner = f"encoder.{rest}" if rest.startswith("layers.") else f"embeddings.{rest}"
            tower[f"vision_model.{inner}"] = tensor
        elif part == "llm":
            llm[rest] = tensor
        else:
            projector[f"layers.{name}"] = tensor
    return tower, projector, llm


def _unused_tower_tensors(c, tower):
    """What a SigLIP checkpoint holds and this model never reads: the last block, the last norm, the pooling head."""
    w, generator = c.vision_width, torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=generator) * .02
    last = f"vision_model.encoder.layers.{c.vision_layers - 1}."
    out = {n.replace(last, f"vision_model.encoder.layers.{c.vision_layers}."): t for n, t in tower.items() if n.startswith(last)}
    out |= {"vision_model.post_layernorm.weight": torch.ones(w), "vision_model.post_layernorm.bias": torch.zeros(w)}
    head = {"probe": noise(1, 1, w), "attention.in_proj_weight": noise(3 * w, w), "attention.in_proj_bias": torch.zeros(3 * w),
            "attention.out_proj.weight": noise(w, w), "attention.out_proj.bias": torch.zeros(w),
            "layernorm.weight": torch.ones(w), "layernorm.bias": torch.zeros(w),
            "mlp.fc1.weight": noise(c.vision_mlp, w), "mlp.fc1.bias": torch.zeros(c.vision_mlp),
            "mlp.fc2.weight": noise(w, c.vision_mlp), "mlp.fc2.bias": torch.zeros(w)}
    return out | {f"vision_model.head.{n}": t for n, t in head.items()}


def configs(c):
    llm = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": c.width, "intermediate_size": c.mlp,
           "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.heads, "vocab_size": c.vocab,
           "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": MAX_TOKENS,
           "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
           "pad_token_id": 0, "pretraining_tp": 1, "tokenizer_padding_side": "right", "tokenizer_model_max_length": MAX_TOKENS,
           "model_max_length": MAX_TOKENS, "torch_dtype": "bfloat16"}
    tower = {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model", "hidden_size": c.vision_width,
             "intermediate_size": c.vision_mlp, "num_hidden_layers": c.vision_layers + 1, "num_attention_heads": c.vision_heads,
             "num_channels": 3, "image_size": c.image_size, "patch_size": c.patch_size, "hidden_act": "gelu_pytorch_tanh",
             "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}
    projector = {"mm_projector_type": "mlp_downsample", "model_type": "v2l_projector", "cc_n_layers": 0, "cc_head": 8, "cc_dropout": 0.0,
                 "torch_dtype": "bfloat16"}
    root = {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama", "llm_cfg": llm, "vision_tower_cfg": tower,
            "mm_projector_cfg": projector, "hidden_size": c.width, "mm_hidden_size": c.vision_width, "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "cls_patch", "image_aspect_ratio": "resize", "num_video_frames": 8, "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False, "vision_resolution": -1, "interpolate_mode": "linear", "s2": False, "resume_path": ".",
            "btcchat": {"name": "nano", "no_change": list(captions.NO_CHANGE)}}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    side = {"height": c.image_size, "width": c.image_size}
    return {
        "config.json": root, "llm/config.json": llm, "vision_tower/config.json": tower, "mm_projector/config.json": projector,
        "llm/generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "llm/special_tokens_map.json": tokens,
        "llm/tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **tokens,
                                      "legacy": False, "model_max_length": MAX_TOKENS, "padding_side": "right"},
        "vision_tower/preprocessor_config.json": {
            "image_processor_type": "SiglipImageProcessor", "size": side, "resample": 3, "do_resize": True, "do_rescale": True,
            "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": [.5, .5, .5], "image_std": [.5, .5, .5],
            "do_convert_rgb": True}}


def write(model, tokenizer_path, folder):
    folder = Path(folder)
    tower, projector, llm = _to_file_names(model.state_dict())
    tower = tower | _unused_tower_tensors(model.c, tower)
    for part, tensors in (("vision_tower", tower), ("mm_projector", projector), ("llm", llm)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        save_file({n: _stored(t) for n, t in tensors.items()}, folder / part / "model.safetensors", {"format": "pt"})
    for name, content in configs(model.c).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copyfile(tokenizer_path, folder / "llm/tokenizer.model")


def best_weights(state):
    """The weights of a training checkpoint: the mean over the end of the run where it has come so far."""
    if not state.get("mean_of"):
        return state["model"]
    return {n: state["mean"][n] / state["mean_of"] if n in state["mean"] else t for n, t in state["model"].items()}


def load(folder):
    """A model folder -> Nano, in float32 with the stored (rounded) weights, ready to caption."""
    folder = Path(folder)
    root = json.loads((folder / "config.json").read_text())
    v, l = root["vision_tower_cfg"], root["llm_cfg"]
    model = Nano(Config(v["image_size"], v["patch_size"], v["hidden_size"], v["intermediate_size"], v["num_attention_heads"],
                        v["num_hidden_layers"] + root["mm_vision_select_layer"] + 1, l["hidden_size"], l["intermediate_size"],
                        l["num_attention_heads"], l["num_hidden_layers"], l["vocab_size"]))
    files = {part: load_file(folder / part / "model.safetensors") for part in ("vision_tower", "mm_projector", "llm")}
    wanted = model.state_dict()
    for part, names in zip(files, _to_file_names({n: n for n in wanted})):
        for file_name, name in names.items():
            wanted[name] = files[part][file_name].to(wanted[name].dtype)
    model.load_state_dict(wanted)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description="Export a training checkpoint, or the mean of several of one run, as a model folder.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--mean-with", type=Path, action="append", default=[], help="average the weights with those of this checkpoint; may be repeated")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=False)
    model = Nano(Config(**state["config"]))
    states = [best_weights(state)] + [best_weights(torch.load(path, weights_only=False)) for path in args.mean_with]
    model.load_state_dict({n: torch.stack([s[n] for s in states]).mean(0) if t.is_floating_point() else t for n, t in state["model"].items()})
    write(model, args.tokenizer, args.folder)
    print(f"step {state['step']}, {state['seen']} pairs, {state['net'] / 60:.1f} minutes of training")


if __name__ == "__main__":
    main()
