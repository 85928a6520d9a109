// SPDX-License-Identifier: Apache-2.0
#include "run_cases.h"

int main(int num_arguments, char** arguments) { return paged::test::run_cases(num_arguments, arguments); }
