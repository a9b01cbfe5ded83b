"""Names that recipes no longer use, and what to write instead: "Did you mean" gives the new one.

A table by scope: "" is the recipe itself, "train" and the like are its sections, "method.lora" is a component. A name that
is not here is compared by spelling.
"""

RANK = {"ranks": "rank_pattern", "rslora": "use_rslora", "rate_of_b": "loraplus_lr_ratio"}
PROMPT = {"length": "num_virtual_tokens", "hidden": "encoder_hidden_size"}

RENAMED_KEYS: dict[str, dict[str, str]] = {
    "": {
        "context": "max_length",
        "max_bad_rows": "max_bad_fraction",
        "start": "init_from",
        "template": "chat_template",
        "too_long": "overlong",
    },
    "replay": {"share": "fraction"},
    "data": {"fraction": "share", "interleave_prob": "share", "probability": "share"},
    "mixing": {"stopping": "stopping_strategy"},
    "train": {
        "best": "best_metric",
        "clip": "max_grad_norm",
        "engine": "implementation",
        "keep": "keep_checkpoints",
        "keep_frozen": "activation_cache",
        "micro_tokens": "micro_batch_tokens",
        "recompute": "gradient_checkpointing",
        "schedule": "lr_schedule",
        "shrink": "gradient_scale",
        "threads": "num_threads",
        "warmup": "warmup_ratio",
    },
    "train.gradient_scale": {"layer": "layers"},  # what was `layers` is `num_layers`
    "method.adalora": {
        "every": "delta_t",
        "final": "tfinal_ratio",
        "orthogonal": "orth_reg_weight",
        "smooth": "betas",
        "target": "target_rank",
        "warm": "tinit_ratio",
    },
    "method.adapter": {"form": "variant"},
    "method.bilora": {"rate_of_values": "values_lr_ratio", "upper_share": "upper_fraction"},
    "method.bitfit": {"part": "biases"},
    "method.f_learning": {"old": "forget_run", "rate": "forget_lambda"},
    "method.freeze": {"decay": "layer_lr_decay", "layers": "num_layers"},
    "method.lora": {**RANK, "start": "init"},
    "method.p_tuning": PROMPT,
    "method.p_tuning_v2": {"length": "num_virtual_tokens"},
    "method.prefix_tuning": {**PROMPT, "reparametrise": "prefix_projection"},
    "method.prompt_tuning": {"length": "num_virtual_tokens", "start": "init", "start_ids": "init_ids"},
    "method.qlora": RANK,
    "method.vera": {"start": "init"},
    "objective.classification": {"pool": "pooling", "several": "multi_label"},
    "objective.embedding": {"contrast": "loss_type", "gradient_cache": "mini_batch_size", "pool": "pooling"},
    "objective.masked_lm": {"share": "mlm_probability", "whole_words": "whole_word_mask"},
    "objective.question_answering": {"longest": "max_answer_length", "overlap": "doc_stride"},
    "objective.regression": {"deviations": "stds", "pool": "pooling"},
    "objective.rerank": {"pool": "pooling"},
    "objective.seq2seq": {"beams": "num_beams", "longest": "max_new_tokens"},
    "objective.token_classification": {"kinds": "entity_types", "names": "tag_names", "repair": "repair_tags"},
    "regularizer.fgm": {"radius": "epsilon"},
    "clip.adagc": {"longest": "max_norm", "times": "lambda_rel"},
    "clip.max_norm": {"longest": "max_norm"},
    "clip.zclip": {"limit": "z_threshold", "longest": "max_norm"},
}

RENAMED_VALUES: dict[str, dict[str, str]] = {
    "overlong": {"cut": "truncate", "refuse": "error", "window": "sliding_window"},
    "train.implementation": {"plain": "reference"},
    "objective.embedding.loss_type": {"in_batch": "in_batch_negatives"},
    "objective.multi_task.weights": {"learnt": "uncertainty"},
}

RENAMED_COMPONENTS: dict[str, dict[str, str]] = {
    "clip": {"fixed": "max_norm"},
    "objective": {"classification_by_text": "generative_classification", "many_tasks": "multi_task"},
}
