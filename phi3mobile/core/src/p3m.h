// The verbs of p3m, the command line over the core: each takes the arguments that follow its name (the first is the verb
// itself) and gives the program's exit status: 0, 1 for what failed, 2 for what was given wrong.
#pragma once

int bench(int count, char** arguments);
int run(int count, char** arguments);
int chat(int count, char** arguments);
int verify(int count, char** arguments);
int tokens(int count, char** arguments);
