"""Other engines that run the quantized model directory: today vLLM, by a plug-in.

Nothing of the package imports this folder. vLLM finds it through an entry point of the installed
package (:mod:`duquant.serving.plugin`).
"""
