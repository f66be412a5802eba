"""VLoRA on Llama, under the published names."""

from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM


class LlavaVLoRAConfig(LlavaConfig):
    """As LLaVA's, with the settings of the generator."""

    model_type = "llava_vlora"


class LlavaLlamaVLoRAForCausalLM(LlavaLlamaForCausalLM):
    """Llama that takes images as weights. The connector makes the difference; this class only has the name."""

    config_class = LlavaVLoRAConfig


AutoConfig.register("llava_vlora", LlavaVLoRAConfig)
AutoModelForCausalLM.register(LlavaVLoRAConfig, LlavaLlamaVLoRAForCausalLM)
