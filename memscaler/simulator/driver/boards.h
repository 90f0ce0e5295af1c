#ifndef SIM_BOARDS_H
#define SIM_BOARDS_H

#include "state.h"

extern const sim_spec board_catalogue[];
extern const unsigned board_catalogue_size;
const sim_spec *board_find(const char *key);

#endif
