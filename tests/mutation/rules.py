"""What is mutated, what is left alone and why, and which tests should notice."""

# Below include/recycled.
FILES = ["kernels/*.hpp", "cache/*.hpp", "schedule/*.hpp", "selection/*.hpp", "sketch/*.hpp", "types/*.hpp",
         "executor/*.hpp", "*.hpp"]  # fmt: skip

# (files, lines, reason): nothing on such a line is flipped
SKIPPED_LINES = [
    ("", r"^\s*(#|//|template <|static_assert|using |concept |requires)|^\s*\S+ requires", "no code that runs"),
    ("", r"if constexpr|noexcept\(", "decided by types"),
    ("(kernels|cache)/", r"prefetch|\b(fetch|ahead|fetched_ahead)\b|Fetch(es)?\b|\bask(_rest)?\(|\bfetched (=|\+=)",
     "what is fetched before it is needed changes no result"),
    ("kernels/(decode|tile).hpp", r"\bnext\b", "the same: whose rows are fetched next"),
    ("(schedule|selection|token_attention|layer)", r"reserve\(", "room that is taken early: the contents are the same"),
    ("selection/", r"\.capacity\(\) < size", "the same"),
    ("kernels/rows.hpp", r"constexpr index_t (block|logit_stride|row_chunk)", "sizes of tiles: any larger one will do"),
    ("", r"for_row_tiles<", "the same"),
    ("kernels/", r"constexpr int|lines\(index_t", "how work is cut, and what is padded: the sums are the same"),
    ("kernels/decode.hpp", r"most_pieces\(index_t|return std::max\(index_t\{16\}|4 \* block", "how many pieces"),
    ("kernels/prefill.hpp", r"constexpr index_t", "sizes of chunks and tiles"),
    ("schedule/", r"static constexpr (float|double|index_t)", "rates, bounds and first values, chosen by measuring"),
    ("", r"^\s*(float|double|index_t|bool|std::\w+) (\w+_ = [^;]*;|\w+ = \S*;\s*//)", "members' first values"),
    ("token_attention", r"^    std::uint64_t \w+ = 0;", "the same, of what every step sets"),
    ("kernels/top_k", r"\bone = \*rank ==|const double (place|reach|expected)\b",
     "bounds that a search begins with, and widens if they are wrong"),
    ("kernels/softmax_state", r"^  float \w+ = ", "the same"),
    ("sketch/", r"static constexpr [^(]*$", "rates and sizes, chosen by measuring"),
    ("kernels/score_tile", r"if \(d < dim\) \{", "what is inside asks again"),
    ("kernels/rows", r"^  index_t \w+ = 0;", "members' first values"),
    ("sketch/axes", r"product\[longest\]\[0\] = -1", "0 is as far behind as -1 until all others are 0, too"),
    ("types/memory", r"huge|alignment", "where memory lies changes no result"),
    ("executor/thread_pool", r"spins|alignas", "how long a thread waits before it parks"),
]

# (files, lines, flip, reason): a flip that changes nothing
EQUAL_FLIPS = [
    ("kernels/code_logits", r"if \(most > largest_\)", "> -> >=", "equal ones multiply by 1"),
    ("kernels/code_logits", r"127 \* 128 - 6", "6 -> 7", "chosen by measuring"),
    ("kernels/code_logits", r"sum_ < 1 \?", "< -> <=", "the same"),
    ("kernels/select", r"j \+ Isa::width <= length", "<= -> <", "the last ones go one by one, with the same bits"),
    ("sketch/key_sketch", r"std::accumulate\(row", "0 -> 1", "the same for all positions: softmax does not see it"),
    ("kernels/score_tile", r"score_rows<Isa, tile\(\), ", "true -> false|false -> true", "what is fetched"),
    ("kernels/score_tile", r"block_max > max", "> -> >=", "the same"),
    ("selection/", r"\.size\(\)\) > length", "> -> >=", "equal ones change nothing"),
    ("score_board", r"axis_floats == 0", "0 -> 1", "it is never 1"),
    ("score_board", r"p < first_positions\(\)", r"- -> \+|1 -> 0|\|\| -> &&",
     "mark_by has raised them already"),
    ("score_board", r"sketched_count\(length\), .*, length - 1\)", r"- -> \+|1 -> 0",
     "the next step takes a place, too, so that rolling it back says the same"),
    ("score_board", r"grow\(", "2 -> 3|/ -> \\*", "more room than need be"),
    ("sketch/axes", r"floats\(index_t dim", "4 -> 5|2 -> 3", "the same"),
    ("sketch/key_sketch", r"float\* \w+_of\(|coordinates_ \+ 96", "32 -> 33|96 -> 97", "the same: a line is left over"),
    ("executor/thread_pool", r"i < shares_.size\(\)", "< -> <=", "a thread's own share is looked at twice"),
    ("cache/kv_cache", r"from.length_ > 0", "> -> >=", "nothing is copied"),
    ("cache/kv_cache", r"reserve\(std::max", "> -> >=|2 -> 3|256 -> 257", "the same"),
    ("kernels/code_logits", r"doublings_ < 16", "< -> <=|16 -> 17", "where logits are tens of millions apart"),
    ("kernels/score_tile", r"j \+ positions <= count", "<= -> <", "the last ones go one by one, with the same bits"),
    ("kernels/code_logits", r"i \+ Isa::width <= count", "<= -> <", "the same"),
    ("kernels/code_scan", r"whole > begin|end > whole", "> -> >=", "runs of no bytes"),
    ("kernels/code_scan", r"int (least|most) = 0", "0 -> 1", "a thousandth more room than need be"),
    ("kernels/prefill", r"positions.end <= first", "<= -> <|>= -> >", "read token by token, with the same bits"),
    ("cache/prompt_window", r"tokens >= tokens_", ">= -> >", "copied to where they are"),
    ("score_board", r"j < total", "< -> <=", "written behind what is read"),
    ("head_sets", r"coordinates > 0", "0 -> 1", "it is a multiple of 4"),
    ("kernels/code_scan", r"unit \* 32768", "32768 -> 32769|32767 -> 32768", "a unit in the last place"),
    ("kernels/prefill", r"const Visible last", r"- -> \+|1 -> 0", "more is read token by token, with the same bits"),
    ("kernels/value_tile", r"left >= width", r">= -> >|!= -> ==|2 -> 3|\|\| -> &&", "the strips: sums are the same"),
]

# (files, tests, the cheapest that should notice first, ':' and which of their cases); the first line that fits counts.
TESTS = [
    ("kernels/cosine", ["schedule/schedule_test", "schedule/self_calibrating_test"]),
    ("kernels/softmax_state", ["kernels/softmax_state_test", "layer_test"]),
    ("kernels/prefill", ["layer_test", "kernels/prefill_test"]),
    ("kernels/select", ["kernels/select_test"]),
    ("kernels/(top_k|position_bits)", ["kernels/top_k_test", "cache/recycle_cache_test"]),
    ("kernels/code_", ["kernels/code_scan_test", "sketch/sketched_layer_test"]),
    ("kernels/", ["layer_test", "kernels/decode_reads_test", "decoder_types_test", "kernels/decode_test"]),
    ("cache/kv_cache", ["cache/kv_cache_test", "decoder_copies_test"]),
    ("cache/prompt_window", ["layer_test", "decoder_prompt_test", "saved_parts_test"]),
    ("cache/", ["cache/recycle_cache_test", "chosen_sets_test", "save_test"]),
    ("schedule/budget", ["schedule/budgeted_test", "saved_parts_test"]),
    ("schedule/", ["schedule/schedule_test", "bounds_test", "schedule/self_calibrating_test", "schedule/step_info_test",
                   "decoder_rollback_test"]),
    ("selection/(keyformer|gathered)", ["selection/keyformer_test", "selection/baselines_test"]),
    ("selection/top_k", ["selection/baselines_test", "bounds_test", "sketch/sketched_layer_test", "decoder_test",
                         "allocation_test"]),
    ("selection/streaming", ["selection/streaming_llm_test"]),
    ("selection/", ["selection/baselines_test", "bounds_test", "decoder_prompt_test", "layer_errors_test"]),
    ("sketch/", ["sketch/key_sketch_test", "sketch/sketched_layer_test", "sketch/refresh_life_test"]),
    ("score_board", ["sketch/sketched_layer_test", "selection/baselines_test", "decoder_prompt_test"]),
    ("types/(archive|statistics)", ["saved_parts_test", "save_test", "save_damage_test"]),
    ("types/kv_view", ["types/kv_view_test", "layer_pages_test", "bounds_test", "stress/wrong_calls_test"]),
    ("types/memory", ["types/memory_test"]),
    ("types/scalar", ["types/scalar_test", "kernels/decode_test"]),
    ("types/", ["bounds_test", "layer_errors_test", "types/kv_view_test", "stress/wrong_making_test"]),
    ("executor/", ["executor/thread_pool_test", "concurrency_test"]),
    ("decoder", ["decoder_test", "decoder_rollback_test", "decoder_copies_test", "layer_errors_test"]),
    ("scratch", ["scratch_test", "layer_test", "sketch/refresh_life_test"]),
    ("step_work", ["scratch_test", "layer_test", "sketch/sketched_layer_test"]),
    ("head_sets", ["sketch/sketched_layer_test", "chosen_sets_test", "decoder_rollback_test", "sketch/by_keys_test"]),
    ("token_attention", ["layer_test", "sketch/sketched_layer_test", "decoder_prompt_test", "sketch/by_keys_test"]),
    ("layer", ["layer_test", "layer_errors_test", "chosen_sets_test", "sketch/sketched_layer_test",
               "decoder_rollback_test", "scratch_test"]),
]  # fmt: skip

# After those of its file, for whatever is left: rows of two types, saved states, all policies against the oracle,
# prompts, sets that hosts choose, bytes read, sketches, what is allocated.
LAST = ["mixed_rows_test", "save_test", "decoder_test", "decoder_prompt_test", "chosen_sets_test",
        "schedule/step_info_test", "sketch/sketched_layer_test", "sketch/refresh_life_test",
        "allocation_test"]  # fmt: skip

# What the pieces of a step share, each with a part of its own: those parts overlap where ThreadSanitizer says so.
SHARED = "score_board|scratch|step_work|token_attention|head_sets|kernels/(workspace|decode)|sketch/key_sketch"
