# SPDX-License-Identifier: Apache-2.0
# HIP from Debian 12's own packages (docs/hip.md): clang 22 with HIP 5.2 headers and device libraries of the same age.
# Those lack the file of one constant that names an architecture, for every architecture since: it is made here. With it
# comes a constant that those libraries read and clang no longer links: 1 would let float32 denormals become zero.
# Sets PAGED_HIP_DISTRIBUTION_FLAGS.
set(bitcode /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/amdgcn/bitcode)
if(NOT EXISTS ${bitcode}/ockl.bc)
  message(FATAL_ERROR "no AMD device libraries in ${bitcode}: apt-get install rocm-device-libs libamdhip64-dev")
endif()
set(folder ${CMAKE_CURRENT_BINARY_DIR}/bitcode)
file(GLOB files ${bitcode}/*.bc)
file(COPY ${files} DESTINATION ${folder})

foreach(architecture ${PAGED_HIP_ARCHITECTURES})
  # gfx1100 is 11, 0, 0; gfx90a is 9, 0, 10: the stepping is hexadecimal.
  if(NOT architecture MATCHES "^gfx([0-9]+)([0-9])([0-9a-f])$")
    message(FATAL_ERROR "PAGED_HIP_ARCHITECTURES: '${architecture}' is no name like gfx942")
  endif()
  set(name ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
  math(EXPR version "${CMAKE_MATCH_1} * 1000 + ${CMAKE_MATCH_2} * 100 + 0x${CMAKE_MATCH_3}")
  set(file ${folder}/oclc_isa_version_${name})
  file(WRITE ${file}.ll
    "target triple = \"amdgcn-amd-amdhsa\"\n"
    "@__oclc_ISA_version = linkonce_odr hidden local_unnamed_addr addrspace(4) constant i32 ${version}, align 4\n"
    "@__oclc_daz_opt = linkonce_odr hidden local_unnamed_addr addrspace(4) constant i8 0, align 1\n")
  execute_process(COMMAND ${PAGED_HIP_COMPILER} --target=amdgcn-amd-amdhsa -nogpulib -Wno-override-module
    -x ir -c -emit-llvm ${file}.ll -o ${file}.bc COMMAND_ERROR_IS_FATAL ANY)
endforeach()

# Code object version 5: the newest that those device libraries have a file for.
set(PAGED_HIP_DISTRIBUTION_FLAGS --rocm-path=/usr --rocm-device-lib-path=${folder} -mcode-object-version=5
  -include ${CMAKE_CURRENT_LIST_DIR}/compat.h)
