# Decides whether src/device/cuda is built (NIBBLE_WITH_CUDA) and how nvcc compiles it.
#
# The runtime is linked statically and loads the driver when it is first used; cuBLASLt is opened
# with dlopen. One binary so starts with and without a GPU.
set(NIBBLE_WITH_CUDA OFF)
if(NOT NIBBLE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # given below: this CMake does not know 90a
  check_language(CUDA)
  if(NIBBLE_CUDA STREQUAL "ON" OR CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(NIBBLE_WITH_CUDA ON)
  endif()
endif()
if(NOT NIBBLE_WITH_CUDA)
  message(STATUS "CUDA backend: not built (NIBBLE_CUDA=${NIBBLE_CUDA})")
  return()
endif()
message(STATUS "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${NIBBLE_CUDA_ARCHS}")

set(CMAKE_CUDA_STANDARD 17)  # old toolkits, which sm_70 needs, know no more
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(NIBBLE_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${NIBBLE_CCACHE})
endif()
set(nibble_gencode)
foreach(arch ${NIBBLE_CUDA_ARCHS})
  if(arch MATCHES "^(.*)-virtual$")  # PTX, which the driver of this or a newer GPU compiles
    list(APPEND nibble_gencode "SHELL:-gencode=arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1}")
  else()
    list(APPEND nibble_gencode "SHELL:-gencode=arch=compute_${arch},code=sm_${arch}")
  endif()
endforeach()
target_compile_options(nibble_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:${nibble_gencode};--extended-lambda;--expt-relaxed-constexpr;-Xcompiler=-Wall;-Xcompiler=-Wextra;$<$<BOOL:${NIBBLE_WERROR}>:--Werror=all-warnings>>")
