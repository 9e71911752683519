"""Name what some flags and arguments may be; apart from what they do, so that parsers are made without PyTorch."""

EMA_CHOICES = ("auto", "always", "never")  # which weights of a training's checkpoint: the averaged ones or not
AMP_DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16"}  # torch's names
MODEL_DTYPES = ("float32", "bfloat16", "float16")  # torch's names, of weights
SIZE_SCHEDULES = ("linear", "steps")  # how training images grow
FORMATS = ("table", "csv", "json", "jsonl")  # of predictions
CHECKPOINT_LAYOUTS = ("davit", "pyramid", "timm", "florence2", "florence2_native", "mmpretrain")  # names of weights
TOPK_IDS = "topk_ids.csv"  # the file of predictions that the original wrote
FITTED_ON = ("all", "half")  # of the images, a temperature
BUNDLED_REAL = "timm"  # the ReaL labels that timm carries, in place of a file
CLASSIFICATION, MULTILABEL = "classification", "multilabel"
TASKS = (CLASSIFICATION, MULTILABEL)  # one class per image, or any number of them
THRESHOLDS = ("all", "class")  # one threshold for all classes, or one for each
# timm's names, "asymmetric" being a second one of "asl"
LOSSES = ("auto", "ce", "bce", "asl", "asymmetric", "poly", "jsd", "twoway", "zlpr", "db")
EVAL_METRICS = ("top1", "top5", "loss")
MULTILABEL_METRICS = ("map", "micro_map", "macro_f1", "micro_f1", "loss")
SAMPLERS = ("shuffled", "balanced")  # the order of training samples
