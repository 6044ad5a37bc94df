#include "compiled/kernels.hpp"

namespace recycled::inline RECYCLED_ABI::kernels {

COMPILED_KERNELS(, float)
COMPILED_KERNELS(, half)
COMPILED_KERNELS(, bfloat16)
COMPILED_KERNELS(, q8_0)

}  // namespace recycled::inline RECYCLED_ABI::kernels
