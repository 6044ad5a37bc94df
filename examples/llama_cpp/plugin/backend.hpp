// The ggml backend: an accelerator device without memory of its own.
#pragma once

#include <ggml-backend-impl.h>

namespace plugin {

/// For the host's list of backends. Made at the first call.
ggml_backend_reg_t registry();

/// "attention by Recycled 0.1.0"
const char* description();

}  // namespace plugin
