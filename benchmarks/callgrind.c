/* callgrind's client requests, which are macros, as functions for ctypes. Built by instructions.py. */
#include <valgrind/callgrind.h>

void start_counting(void) { CALLGRIND_START_INSTRUMENTATION; }

void stop_counting(const char *name)
{
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
}
