// Recycled: long-context decode attention that reads the whole KV cache now and then, and the rows that matter in
// between.
//
//     #include <recycled/recycled.hpp>
//
// LayerAttention (layer.hpp) works on KV memory that the host owns, Decoder (decoder.hpp) owns it. README.md shows
// both.
#pragma once

#include "recycled/decoder.hpp"
#include "recycled/executor/serial.hpp"
#include "recycled/executor/thread_pool.hpp"
#include "recycled/layer.hpp"
#include "recycled/schedule/always_full.hpp"
#include "recycled/schedule/budgeted.hpp"
#include "recycled/schedule/fixed_stride.hpp"
#include "recycled/schedule/never_full.hpp"
#include "recycled/schedule/query_similarity.hpp"
#include "recycled/schedule/self_calibrating.hpp"
#include "recycled/selection/heavy_hitters.hpp"
#include "recycled/selection/keyformer.hpp"
#include "recycled/selection/sliding_window.hpp"
#include "recycled/selection/streaming_llm.hpp"
#include "recycled/selection/top_k.hpp"
#include "recycled/version.hpp"
