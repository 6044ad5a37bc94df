// llama.cpp as a test sees it: a model, contexts with and without the plugin, and what the plugin says it did.
#pragma once

#include <dlfcn.h>
#include <ggml-backend.h>
#include <llama.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "../plugin/recycled_ggml.h"

namespace host {

/// The plugin. A context has it if it is on when the context is made.
class Plugin {
 public:
  explicit Plugin(const std::string& path) : path_(path), registry_(ggml_backend_load(path.c_str())) {
    if (registry_ == nullptr) throw std::runtime_error("the plugin was not loaded: " + path);
    dlopen(path.c_str(), RTLD_NOW);  // stays when it is turned off
    turn(false);
  }
  const std::string& path() const { return path_; }
  void turn(bool on) { on ? ggml_backend_register(registry_) : ggml_backend_unload(registry_); }

  void set(const char* name, const std::string& value) const {
    const auto function = procedure<recycled_ggml_set_t>("recycled_ggml_set");
    if (const char* error = function(name, value.c_str())) throw std::runtime_error(error);
  }
  recycled_ggml_statistics statistics() const {
    recycled_ggml_statistics result;
    procedure<recycled_ggml_get_statistics_t>("recycled_ggml_get_statistics")(&result);
    return result;
  }
  template <class Function>
  Function procedure(const char* name) const {
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(registry_, name));
  }

 private:
  std::string path_;
  ggml_backend_reg_t registry_;
};

struct Free {
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_context* context) const { llama_free(context); }
};
using Model = std::unique_ptr<llama_model, Free>;
using Context = std::unique_ptr<llama_context, Free>;

inline Model load_model(const std::string& path) {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  Model model(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
  if (model == nullptr) throw std::runtime_error("no model at " + path);
  return model;
}

struct Settings {
  unsigned positions = 2048;
  unsigned sequences = 1;
  bool unified = true;
  unsigned chunk = 512;  ///< tokens that are computed together
  ggml_type cache = GGML_TYPE_F16;
  int threads = 2;
  bool flash_attention = true;  ///< without it the plugin has nothing to do
};

inline Context make_context(llama_model* model, const Settings& settings) {
  llama_context_params p = llama_context_default_params();
  p.n_ctx = settings.positions;
  p.n_batch = settings.positions;
  p.n_ubatch = settings.chunk;
  p.n_seq_max = settings.sequences;
  p.kv_unified = settings.unified;
  p.n_threads = p.n_threads_batch = settings.threads;
  p.flash_attn_type = settings.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  p.type_k = p.type_v = settings.cache;
  Context context(llama_init_from_model(model, p));
  if (context == nullptr) throw std::runtime_error("no context");
  return context;
}

struct Token {
  llama_token id;
  llama_pos position;
  llama_seq_id sequence = 0;
};

/// Logits of the last `wanted` tokens.
inline std::vector<std::vector<float>> decode(llama_context* context, const std::vector<Token>& tokens,
                                              std::size_t wanted) {
  llama_batch batch = llama_batch_init(static_cast<int>(tokens.size()), 0, 1);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i].id;
    batch.pos[i] = tokens[i].position;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = tokens[i].sequence;
    batch.logits[i] = i + wanted >= tokens.size();
  }
  batch.n_tokens = static_cast<int>(tokens.size());
  const int status = llama_decode(context, batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode: " + std::to_string(status));
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
  std::vector<std::vector<float>> logits;
  for (std::size_t i = tokens.size() - wanted; i < tokens.size(); ++i) {
    const float* const row = llama_get_logits_ith(context, static_cast<int>(i));
    logits.emplace_back(row, row + vocabulary);
  }
  return logits;
}

/// Mean squared error of logits over their mean square.
inline double nmse(const std::vector<float>& actual, const std::vector<float>& expected) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double difference = static_cast<double>(actual[i]) - static_cast<double>(expected[i]);
    error += difference * difference;
    power += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  return error / power;
}

/// Kullback-Leibler divergence of the distribution of `actual` from that of `expected`, in nats.
inline double divergence(const std::vector<float>& actual, const std::vector<float>& expected) {
  const auto log_sum = [](const std::vector<float>& logits) {
    double largest = -INFINITY, sum = 0;
    for (const float x : logits) largest = std::max(largest, static_cast<double>(x));
    for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
    return largest + std::log(sum);
  };
  const double a = log_sum(actual), e = log_sum(expected);
  double sum = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double p = static_cast<double>(expected[i]) - e;
    sum += std::exp(p) * (p - (static_cast<double>(actual[i]) - a));
  }
  return sum;
}

}  // namespace host
