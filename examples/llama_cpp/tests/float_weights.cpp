// Writes a model with its weights as floats: usage: float_weights MODEL OUT
#include <llama.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: float_weights MODEL OUT\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
}
