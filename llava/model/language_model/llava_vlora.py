"""VLoRA on Llama, under the published names."""

from transformers import AutoConfig, AutoModelForCausalLM

from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM


class LlavaVLoRAConfig(LlavaConfig):
    """LLaVA's configuration with the settings of the generator."""

    model_type = "llava_vlora"


class LlavaLlamaVLoRAForCausalLM(LlavaLlamaForCausalLM):
    """Llama with images as weights. The connector makes the difference; this class adds the published name."""

    config_class = LlavaVLoRAConfig


AutoConfig.register("llava_vlora", LlavaVLoRAConfig)
AutoModelForCausalLM.register(LlavaVLoRAConfig, LlavaLlamaVLoRAForCausalLM)
