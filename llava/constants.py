"""Constants shared by the model, the training code and the servers.

``<image>`` is never a vocabulary entry: in a prompt it becomes the id ``IMAGE_TOKEN_INDEX``, which must never reach
an embedding table.
"""

import os

CONTROLLER_HEART_BEAT_EXPIRATION = 30  # seconds
WORKER_HEART_BEAT_INTERVAL = 15  # seconds

# Where the servers write logs. The environment variable keeps prompts out of the working directory if wanted.
LOGDIR = os.environ.get("LLAVA_LOGDIR", ".")

# Model constants
IGNORE_INDEX = -100
IMAGE_TOKEN_INDEX = -200
DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"
