# SPDX-License-Identifier: Apache-2.0
# Fails if an object of one instruction set defines a global or weak function outside that set's namespace: the
# linker may keep that one copy for everybody.
# Usage: cmake -DNM=nm -DISA=avx2 "-DOBJECTS=a.o;b.o" -P check_isa_symbols.cmake
set(foreign "")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --defined-only -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WT] [^\n]*" exported "${symbols}")
  foreach(symbol IN LISTS exported)
    if(NOT symbol MATCHES "paged::cpu::${ISA}::")
      string(APPEND foreign "${object}: ${symbol}\n")
    endif()
  endforeach()
endforeach()
if(NOT foreign STREQUAL "")
  message(FATAL_ERROR "symbols outside paged::cpu::${ISA}:\n${foreign}")
endif()
