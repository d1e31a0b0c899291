"""LiteRT: the decoder as a .tflite program and as a .litertlm package, written from the config, operator by operator."""
