#pragma once

// The one place that names the version: CMakeLists.txt reads it from here.
#define RECYCLED_VERSION_MAJOR 0
#define RECYCLED_VERSION_MINOR 1
#define RECYCLED_VERSION_PATCH 0
