"""LLaVA on Llama."""

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.label_loss import LanguageHead
from llava.model.language_model.causal_lm import LlavaCausalLMMixin
from llava.model.language_model.config_io import LegacyConfigMixin
from llava.model.llava_arch import LlavaMetaModel


class LlavaConfig(LegacyConfigMixin, LlamaConfig):
    """Llama's configuration plus LLaVA's vision keys (see `vision_config`)."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """The inner model: decoder, vision tower and connector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaCausalLMMixin, LlamaForCausalLM):
    """Llama with images."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model


AutoConfig.register("llava_llama", LlavaConfig)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
