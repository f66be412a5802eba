"""LLaVA on Mistral."""

from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, MistralModel

from llava.model.label_loss import LanguageHead
from llava.model.language_model.causal_lm import LlavaCausalLMMixin
from llava.model.language_model.config_io import LegacyConfigMixin
from llava.model.llava_arch import LlavaMetaModel


class LlavaMistralConfig(LegacyConfigMixin, MistralConfig):
    """Mistral's configuration plus LLaVA's vision keys (see `vision_config`)."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaMetaModel, MistralModel):
    """The inner model: decoder, vision tower and connector."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaCausalLMMixin, MistralForCausalLM):
    """Mistral with images."""

    config_class = LlavaMistralConfig

    def __init__(self, config: LlavaMistralConfig) -> None:
        super(MistralForCausalLM, self).__init__(config)
        self.model = LlavaMistralModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaMistralModel:
        return self.model


AutoConfig.register("llava_mistral", LlavaMistralConfig)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM)
