/* Holds a pod's namespaces, as process 1 of them, until the kubelet asks it to end. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) { _exit(0); }

int main(void) {
  struct sigaction ending = {.sa_handler = end}, orphans = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
  sigaction(SIGTERM, &ending, 0);
  sigaction(SIGINT, &ending, 0);
  sigaction(SIGCHLD, &orphans, 0);
  for (;;) pause();
}
