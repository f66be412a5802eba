"""The playground: a small synthetic world on which the whole LLaVA recipe runs on a CPU in minutes.

`world` says what a scene is, `render` draws it, `language` talks about it, `make_data` writes LLaVA's data files,
and `build_bases` trains the two stand-ins (a tiny CLIP, a tiny LLaMA) that are shipped under `bases/`.
"""
