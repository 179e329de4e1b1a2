# Compiler settings and the three kinds of target every folder uses.
find_package(Threads REQUIRED)
find_program(NIBBLE_CCACHE ccache)
if(NIBBLE_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${NIBBLE_CCACHE})
endif()
find_program(NIBBLE_MOLD mold)

add_library(nibble_options INTERFACE)
target_include_directories(nibble_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
# -ffp-contract=off: the rounding contracts of quantization and of the reference ops name every
# rounding; a compiler that fuses a multiply and an add would break them.
target_compile_options(nibble_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:
  -Wall -Wextra -Wno-format-zero-length -Wno-restrict -ffp-contract=off
  $<$<BOOL:${NIBBLE_WERROR}>:-Werror>>)
target_link_libraries(nibble_options INTERFACE Threads::Threads)
if(NIBBLE_MOLD)
  target_link_options(nibble_options INTERFACE -fuse-ld=mold)
endif()
if(NIBBLE_SANITIZE)
  target_compile_options(nibble_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${NIBBLE_SANITIZE} -fno-omit-frame-pointer>)
  target_link_options(nibble_options INTERFACE -fsanitize=${NIBBLE_SANITIZE})
endif()

# nibble_folder(name deps...): src/<name>/*.cc (and its subfolders) as library nibble_<name>.
function(nibble_folder name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cc)
  list(FILTER sources EXCLUDE REGEX "/main\\.cc$")  # of the executable
  if(NOT NIBBLE_WITH_CUDA)
    list(FILTER sources EXCLUDE REGEX "/cuda/")
  endif()
  string(REPLACE "/" "_" target nibble_${name})
  if(NOT sources)
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE nibble_options ${ARGN})
    return()
  endif()
  add_library(${target} STATIC ${sources})
  target_link_libraries(${target} PUBLIC nibble_options ${ARGN})
endfunction()

# nibble_tests(name libs...): tests/<name>/*_test.cc as one program, its tests known to CTest.
function(nibble_tests name)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${name}/*_test.cc)
  list(FILTER sources EXCLUDE REGEX "/cuda_[^/]*$")  # cuda_tests
  if(NOT sources)
    return()
  endif()
  add_executable(${name}_tests ${sources})
  target_link_libraries(${name}_tests PRIVATE ${ARGN} nibble_test_support)
  gtest_discover_tests(${name}_tests DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 600)
endfunction()
