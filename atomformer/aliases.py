"""Published names of command line flags: hidden aliases of our flags, or a message that names the replacement.

They are the TrainingArguments of Hugging Face and flags of its example scripts, which train the published library.
"""

# Flags with an exact counterpart here.
TRAINING_ALIASES = {
    "--output_dir": "--run-dir",
    "--num_train_epochs": "--epochs",
    "--adam_beta1": "--b1",
    "--adam_beta2": "--b2",
    "--adam_epsilon": "--adam-eps",
    "--max_grad_norm": "--clip-norm",
    "--lr_scheduler_type": "--schedule",
    "--warmup_ratio": "--warmup-fraction",
    "--logging_steps": "--log-every",
    "--eval_steps": "--validate-every",
    "--save_steps": "--checkpoint-every",
    "--save_total_limit": "--keep",
    "--early_stopping_patience": "--patience",
    "--model_name_or_path": "--model",
    "--train_file": "--train",
    "--train_dir": "--train",
    "--validation_file": "--validation",
    "--train_split": "--split",
    "--train_split_name": "--split",
    "--eval_split_name": "--validation-split",
}
_BATCH = "give --batch-size, the structures per step over all devices, and --accumulate, the parts it is computed in"
_PRECISION = "give --compute-dtype bfloat16 for activations in half precision; parameters stay in float32"
_WHOLE_DEVICES = "not needed: one process uses all its devices; --distributed joins several processes"
TRAINING_ANSWERS = {
    "--per_device_train_batch_size": _BATCH,
    "--per_device_eval_batch_size": _BATCH,
    "--auto_find_batch_size": _BATCH,
    "--gradient_accumulation_steps": _BATCH,
    "--bf16": _PRECISION,
    "--fp16": _PRECISION,
    "--tf32": "not needed: JAX chooses the precision of matrix products by JAX_DEFAULT_MATMUL_PRECISION",
    "--optim": "give --optimizer adam or --optimizer adamw",
    "--report_to": "TensorBoard events are always written; --wandb-project NAME reports to Weights & Biases too",
    "--run_name": "the run is named after its folder, --run-dir",
    "--logging_dir": "TensorBoard events are in the run folder, --run-dir",
    "--resume_from_checkpoint": "give --run-dir RUN --resume",
    "--overwrite_output_dir": "remove the run folder, or choose another --run-dir",
    "--do_train": "not needed: the command trains and, with --validation or --validation-fraction, validates",
    "--do_eval": "not needed: the command validates with --validation or --validation-fraction",
    "--do_predict": "use `atomformer predict`",
    "--evaluation_strategy": "give --validate-every STEPS; by default once per epoch",
    "--eval_strategy": "give --validate-every STEPS; by default once per epoch",
    "--save_strategy": "give --checkpoint-every STEPS; by default once per epoch",
    "--load_best_model_at_end": "not needed: the model of the run is the best one on the validation set",
    "--group_by_length": "not needed: batches always group structures of similar size",
    "--dataloader_num_workers": "not needed: batches are loaded ahead of time",
    "--dataloader_pin_memory": "not needed: batches are loaded ahead of time",
    "--remove_unused_columns": "not needed: only the columns of the loss terms are read",
    "--torch_compile": "not needed: every step is compiled",
    "--deepspeed": _WHOLE_DEVICES,
    "--fsdp": _WHOLE_DEVICES,
    "--ddp_find_unused_parameters": _WHOLE_DEVICES,
    "--local_rank": _WHOLE_DEVICES,
    "--data_seed": "--seed determines the order of the data as well",
    "--tokenizer_name": "not needed: the vocabulary is part of the model",
    "--validation_split_percentage": "give --validation-fraction, e.g. 0.05 for 5 %",
    "--push_to_hub": "not done here: the folder RUN/model can be uploaded as it is",
}
PREDICTION_ANSWERS = {
    "--per_device_eval_batch_size": "not needed: the size of a batch follows from the sizes of its structures",
    "--tokenizer_name": "not needed: the vocabulary is part of the model",
}
