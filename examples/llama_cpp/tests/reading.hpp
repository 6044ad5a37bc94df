// A text that is given to the model: a prompt at once, what follows token by token.
#pragma once

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>

#include "host.hpp"

namespace host {

using Logits = std::vector<std::vector<float>>;
using Tokens = std::vector<llama_token>;

inline std::string contents_of(const std::string& path) {
  std::ifstream file(path);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) throw std::runtime_error(path + " could not be read");
  return text;
}

/// `begins`: nothing comes before the text.
inline Tokens tokenize(const llama_model* model, const std::string& text, bool begins = true) {
  Tokens tokens(text.size() + 16);
  const int count = llama_tokenize(llama_model_get_vocab(model), text.data(), static_cast<int>(text.size()),
                                   tokens.data(), static_cast<int>(tokens.size()), begins, false);
  tokens.resize(static_cast<std::size_t>(std::max(count, 0)));
  return tokens;
}

/// The first `wanted` tokens of a file.
inline Tokens tokens_of(const llama_model* model, const std::string& path, int wanted) {
  Tokens tokens = tokenize(model, contents_of(path));
  if (static_cast<int>(tokens.size()) < wanted)
    throw std::runtime_error(path + ": " + std::to_string(tokens.size()) + " tokens, " + std::to_string(wanted) +
                             " are needed");
  tokens.resize(static_cast<std::size_t>(wanted));
  return tokens;
}

/// Tokens [begin, end) of the text together.
inline void read_prompt(llama_context* context, const Tokens& text, int begin, int end) {
  std::vector<Token> prompt;
  for (int i = begin; i < end; ++i) prompt.push_back({text[static_cast<std::size_t>(i)], i});
  decode(context, prompt, 1);
}

/// What follows each of a text's tokens, and how long it took.
struct Followed {
  Logits logits;
  std::vector<double> milliseconds;
};

/// Tokens [begin, end) of the text, one by one. `done` is called after each.
template <class F>
Followed follow(llama_context* context, const Tokens& text, int begin, int end, const F& done) {
  Followed followed;
  for (int i = begin; i < end; ++i) {
    const auto start = std::chrono::steady_clock::now();
    followed.logits.push_back(decode(context, {{text[static_cast<std::size_t>(i)], i}}, 1).front());
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
    followed.milliseconds.push_back(time.count());
    done();
  }
  return followed;
}

/// Takes back what was read from position `length` on.
inline void rewind(llama_context* context, int length) {
  llama_memory_seq_rm(llama_get_memory(context), 0, length, -1);
}

/// "schedule@capacity", where the last may be missing.
inline void set_policy(const Plugin& plugin, const std::string& policy, const std::string& capacity) {
  const std::size_t at = policy.find('@');
  plugin.set("schedule", policy.substr(0, at));
  plugin.set("capacity", at == std::string::npos ? capacity : policy.substr(at + 1));
}

/// Tokens that a policy sees of the prompt: their queries choose its first set.
constexpr int last_queries = 64;

/// Goes back to the end of a prompt of `length` tokens, which was read before, now under a policy.
inline void read_end(llama_context* context, const Plugin& plugin, const Tokens& text, int length,
                     const std::string& policy, const std::string& capacity) {
  rewind(context, length - last_queries);
  set_policy(plugin, policy, capacity);
  read_prompt(context, text, length - last_queries, length);
}

}  // namespace host
