// An application for images without a shell: says what it has, leaves an orphan, and ends with 6 when it is told to.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(6);
}

int main(int count, char **arguments) {
  const char *key = getenv("KEY");
  signal(SIGTERM, end);
  if (fork() == 0) {
    if (fork() == 0) usleep(100000);
    _exit(0);
  }
  printf("key %s, argument %s, parent %d\n", key ? key : "none", count > 1 ? arguments[1] : "none", (int)getppid());
  fflush(stdout);
  if (count > 1 && arguments[1][0] == 'e') return 7;
  for (;;) pause();
}
