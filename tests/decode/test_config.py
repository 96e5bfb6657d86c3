"""What config.json says, in the words of old and of new versions of transformers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec_decode import config as configs
from qspec_decode import rope
from qspec_kernels import CheckpointError

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def write(directory: Path, **changes: Any) -> Path:
    content = {key: value for key, value in (BASE | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(content))
    return directory


def test_absent_values_have_the_defaults_of_the_family(tmp_path: Path) -> None:
    config = configs.from_dir(write(tmp_path, head_dim=None))
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert config.rope == {"rope_type": "default", "rope_theta": 10000.0}
    assert not config.tie_word_embeddings
    assert config.windows == (None,) * 4
    assert config.eos_token_ids == ()
    assert config.num_real_tokens is None
    assert configs.from_dir(write(tmp_path, model_type="qwen3")).head_dim == 128


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
@pytest.mark.parametrize("value", [..., 0, -3, "64", 1.5, True])
def test_a_bad_size_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is "):
        configs.from_dir(write(tmp_path, **{key: value}))


LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x', expected a number above 0"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a number above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', expected true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, expected true or false"),
        ({"eos_token_id": "a"}, "config.json: eos_token_id is 'a', expected a token id or a list"),
        ({"eos_token_id": [2, None]}, r"eos_token_id is \[2, None\], expected a token id"),
        ({"model_type": "qwen2", "use_sliding_window": "yes"}, "use_sliding_window is 'yes'"),
        ({"model_type": "mistral", "sliding_window": True}, "sliding_window is True"),
        ({"model_type": "qwen2", "max_window_layers": "all"}, "max_window_layers is 'all'"),
        ({"model_type": "qwen2", "layer_types": "full"}, "layer_types is 'full', expected a list"),
        ({"model_type": "qwen2", "layer_types": [["full_attention"]] * 4}, "layer_types has 4"),
        ({"rope_scaling": [1]}, r"rope parameters are \[1\], expected an object"),
        ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope type \['yarn'\] is not supported"),
        ({"rope_theta": "1e4"}, "rope_theta = '1e4', expected a number above 1"),
        ({"rope_scaling": {"rope_type": "yarn", "beta_fast": "x"}}, "beta_fast = 'x'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": math.inf}}, "factor = inf"),
        ({"rope_scaling": LLAMA3}, "low_freq_factor is 4, expected less than high_freq_factor 4"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        configs.from_dir(write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", {"eos_token_id": "a"}, "eos_token_id is 'a', expected a token id"),
        ("tokenizer.json", {}, "model: vocab is None, expected an object of tokens and ids"),
        ("tokenizer.json", {"model": {"vocab": {"a": "0"}}}, "vocab is {'a': '0'}, expected"),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": 3}, "added_tokens is 3, expected a list"),
        ("tokenizer.json", {"model": {"vocab": {}}, "added_tokens": [{"content": "a"}]}, "objects with ids"),
    ],
)
def test_a_bad_value_of_another_file_is_named_with_it(
    tmp_path: Path, file: str, content: dict[str, Any], message: str
) -> None:
    write(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as error:
        configs.from_dir(tmp_path)
    assert file in error.value.message


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    nothing = {"rms_norm_eps": None, "attention_bias": None, "eos_token_id": None, "layer_types": None}
    write(tmp_path, **nothing, rope_scaling=None)
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["a", 0.0]]}, "added_tokens": null}')
    config = configs.from_dir(tmp_path)
    assert (config.rms_norm_eps, config.o_bias, config.eos_token_ids) == (1e-6, False, ())
    assert config.num_real_tokens == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
    ids=["before-4.43", "before-5", "5"],
)
def test_rope_keys_of_every_version_read_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert configs.from_dir(write(tmp_path, **changes)).rope == {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 5e5,
    }


def test_dynamic_frequencies_do_not_depend_on_the_length(tmp_path: Path) -> None:
    config = configs.from_dir(write(tmp_path, rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
    plain = configs.from_dir(write(tmp_path))
    assert config.max_positions == 256
    assert torch.equal(rope.frequencies(config.rope, 16)[0], rope.frequencies(plain.rope, 16)[0])


def test_yarn_stretches_positions_that_the_config_forgot(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert configs.from_dir(write(tmp_path, rope_scaling=yarn)).max_positions == 1024


def test_yarn_without_a_factor_takes_it_from_the_lengths(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 64}
    assert configs.from_dir(write(tmp_path, rope_scaling=yarn)).rope["factor"] == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2'.*not supported"),
        ({"model_type": ...}, "None.*not supported"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantised"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor = None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor = None"),
        ({"rope_scaling": "linear"}, "'linear', expected an object"),
        ({"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": "4k"}}, "= '4k'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "1 entries"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4}, "sliding_window is off"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        configs.from_dir(write(tmp_path, **changes))


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        configs.from_dir(write(tmp_path, model_type="mamba"))
    assert all(family in error.value.hint for family in ("llama", "mistral", "qwen2", "qwen3"))


def test_windows_are_per_layer(tmp_path: Path) -> None:
    mistral = configs.from_dir(write(tmp_path, model_type="mistral", sliding_window=9))
    assert mistral.windows == (9, 9, 9, 9)
    options = {"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 3}
    assert configs.from_dir(write(tmp_path, **options)).windows == (None,) * 4
    assert configs.from_dir(write(tmp_path, **options, use_sliding_window=True)).windows == (None,) * 3 + (9,)
    kinds = ["sliding_attention", "full_attention"] * 2
    listed = configs.from_dir(write(tmp_path, **options, use_sliding_window=True, layer_types=kinds))
    assert listed.windows == (9, None, 9, None)


def test_generation_config_wins_over_config(tmp_path: Path) -> None:
    write(tmp_path, eos_token_id=2)
    assert configs.from_dir(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6], "temperature": 0.6}))
    assert configs.from_dir(tmp_path).eos_token_ids == (5, 6)


def test_ids_behind_the_last_token_are_padding(tmp_path: Path) -> None:
    write(tmp_path)
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 60, "content": "<x>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert configs.from_dir(tmp_path).num_real_tokens == 61


def test_the_digest_of_the_vocabulary_tells_tokenizers_apart(tmp_path: Path) -> None:
    def digest(vocab: Any, *added: str) -> str | None:
        tokens = [{"id": 90 + index, "content": content} for index, content in enumerate(added)]
        (tmp_path / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": vocab}, "added_tokens": tokens})
        )
        return configs.from_dir(tmp_path).vocabulary

    write(tmp_path)
    assert configs.from_dir(tmp_path).vocabulary is None
    same = digest({"a": 0, "b": 1})
    assert same == digest({"b": 1, "a": 0}, "<x>")
    unigram = digest([["a", 0.0], ["b", -1.0]])
    assert unigram == digest([["a", 0.0], ["b", -1.0]], "<y>")
    others = {digest(vocab) for vocab in ({"a": 1, "b": 0}, {"a": 0, "c": 1}, [["b", -1.0], ["a", 0.0]])}
    assert len({same, unigram} | others) == 5
