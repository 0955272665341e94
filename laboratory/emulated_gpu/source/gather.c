/* Gathering from a variable is gathering from its value. */
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

static void rename_attr(Node* node, const char* old, const char* new) {
  Attr* attr = (Attr*)find_attr(node, old);
  if (!attr) return;
  free(attr->name);
  attr->name = strdup(new);
}

static void remove_attr(Node* node, const char* name) {
  Attr* attr = (Attr*)find_attr(node, name);
  if (!attr) return;
  free(attr->name);
  free(attr->value);
  *attr = node->attrs[--node->num_attrs];
}

int make_gather(Node* node) {
  bool rows = !strcmp(node->op, "ResourceGather");
  if (!rows && strcmp(node->op, "ResourceGatherNd")) return -1;
  free(node->op);
  /* Gather has no batches, which nobody has in a variable; GatherV2 has, with an input more. */
  const bool batches = int_attr(node, "batch_dims") != 0;
  node->op = strdup(batches ? "ResourceGather with batch_dims" : rows ? "Gather" : "GatherNd");
  rename_attr(node, "dtype", "Tparams");
  if (rows) remove_attr(node, "batch_dims");
  return 0;
}
