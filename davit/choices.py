"""Name what some flags and arguments may be; apart from what they do, so that parsers are made without PyTorch."""

EMA_CHOICES = ("auto", "always", "never")  # which weights of a training's checkpoint: the averaged ones or not
AMP_DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}  # torch's names
MODEL_DTYPES = ("float32", "bfloat16", "float16")  # torch's names, of weights
SIZE_SCHEDULES = ("linear", "steps")  # how training pictures grow
FORMATS = ("table", "csv", "json", "jsonl")  # of predictions
TOPK_IDS = "topk_ids.csv"  # the file of predictions that the original wrote
FITTED_ON = ("all", "half")  # of the pictures, a temperature
BUNDLED_REAL = "timm"  # the ReaL labels that timm carries, in place of a file
