/* Reads a serialized NodeDef, which is all that TensorFlow's C API gives of a node. */
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

/* Field numbers: node_def.proto and attr_value.proto of tensorflow/core/framework. */
enum { NODE_NAME = 1, NODE_OP = 2, NODE_ATTR = 5, ENTRY_KEY = 1, ENTRY_VALUE = 2 };
enum { ATTR_LIST = 1, ATTR_STRING = 2, ATTR_INT = 3, ATTR_BOOL = 5, LIST_INT = 3 };
enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };

typedef struct Reader {
  const uint8_t *at, *end;
} Reader;

typedef struct Item {
  int number, wire;
  uint64_t varint;
  Reader bytes;
} Item;

static uint64_t read_varint(Reader* reader) {
  uint64_t value = 0;
  for (int shift = 0; reader->at < reader->end && shift < 64; shift += 7) {
    uint8_t byte = *reader->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) break;
  }
  return value;
}

static bool read_item(Reader* reader, Item* item) {
  if (reader->at >= reader->end) return false;
  uint64_t tag = read_varint(reader);
  *item = (Item){.number = (int)(tag >> 3), .wire = (int)(tag & 7)};
  size_t size = 0;
  if (item->wire == VARINT) item->varint = read_varint(reader);
  if (item->wire == BYTES) size = read_varint(reader);
  if (item->wire == FIXED64) size = 8;
  if (item->wire == FIXED32) size = 4;
  if (size > (size_t)(reader->end - reader->at)) return false;
  item->bytes = (Reader){reader->at, reader->at + size};
  reader->at += size;
  return true;
}

static size_t size_of(Reader reader) { return (size_t)(reader.end - reader.at); }

static void add_attr(Node* node, Reader entry) {
  Item item;
  Reader key = {0}, value = {0};
  while (read_item(&entry, &item)) {
    if (item.number == ENTRY_KEY) key = item.bytes;
    if (item.number == ENTRY_VALUE) value = item.bytes;
  }
  if (!size_of(key) || key.at[0] == '_') return;
  node->attrs = realloc(node->attrs, (size_t)(node->num_attrs + 1) * sizeof(Attr));
  Attr* attr = &node->attrs[node->num_attrs++];
  attr->name = strndup((const char*)key.at, size_of(key));
  attr->value_bytes = size_of(value);
  attr->value = malloc(attr->value_bytes + 1);
  if (attr->value_bytes) memcpy(attr->value, value.at, attr->value_bytes);
}

Node* parse_node(const void* data, size_t num_bytes) {
  Node* node = calloc(1, sizeof *node);
  Reader reader = {data, (const uint8_t*)data + num_bytes};
  Item item;
  while (read_item(&reader, &item)) {
    char** text = NULL;
    if (item.number == NODE_NAME) text = &node->name;
    if (item.number == NODE_OP) text = &node->op;
    if (text) {
      free(*text);
      *text = strndup((const char*)item.bytes.at, size_of(item.bytes));
    }
    if (item.number == NODE_ATTR) add_attr(node, item.bytes);
  }
  if (!node->name) node->name = strdup("");
  if (!node->op) node->op = strdup("");
  return node;
}

void delete_node(Node* node) {
  for (int i = 0; i < node->num_attrs; i++) {
    free(node->attrs[i].name);
    free(node->attrs[i].value);
  }
  free(node->attrs);
  free(node->name);
  free(node->op);
  free(node);
}

const Attr* find_attr(const Node* node, const char* name) {
  for (int i = 0; i < node->num_attrs; i++)
    if (!strcmp(node->attrs[i].name, name)) return &node->attrs[i];
  return NULL;
}

/* The first field of that number in an attribute's value. */
static bool find_field(const Attr* attr, int number, Item* item) {
  if (!attr) return false;
  Reader reader = {attr->value, attr->value + attr->value_bytes};
  while (read_item(&reader, item))
    if (item->number == number) return true;
  return false;
}

void string_attr(const Node* node, const char* name, char* text, size_t size) {
  Item item;
  text[0] = 0;
  if (!find_field(find_attr(node, name), ATTR_STRING, &item)) return;
  size_t length = size_of(item.bytes) < size - 1 ? size_of(item.bytes) : size - 1;
  memcpy(text, item.bytes.at, length);
  text[length] = 0;
}

bool bool_attr(const Node* node, const char* name) {
  Item item;
  return find_field(find_attr(node, name), ATTR_BOOL, &item) && item.varint;
}

int64_t int_attr(const Node* node, const char* name) {
  Item item;
  return find_field(find_attr(node, name), ATTR_INT, &item) ? (int64_t)item.varint : 0;
}

int int_list_attr(const Node* node, const char* name, int64_t* values, int max) {
  Item list, item;
  int count = 0;
  if (!find_field(find_attr(node, name), ATTR_LIST, &list)) return 0;
  while (read_item(&list.bytes, &item)) {
    if (item.number != LIST_INT) continue;
    if (item.wire == VARINT && count < max) values[count++] = (int64_t)item.varint;
    while (item.wire == BYTES && size_of(item.bytes) && count < max)
      values[count++] = (int64_t)read_varint(&item.bytes);
  }
  return count;
}

static uint8_t* write_varint(uint8_t* at, uint64_t value) {
  for (; value >= 128; value >>= 7) *at++ = (uint8_t)(value | 128);
  *at++ = (uint8_t)value;
  return at;
}

static void set_value(Node* node, const char* name, const uint8_t* value, size_t size) {
  Attr* attr = (Attr*)find_attr(node, name);
  if (!attr) return;
  free(attr->value);
  attr->value = malloc(size + 1);
  memcpy(attr->value, value, size);
  attr->value_bytes = size;
}

void set_string_attr(Node* node, const char* name, const char* text) {
  uint8_t value[64], *at = value;
  size_t length = strlen(text) < 48 ? strlen(text) : 48;
  at = write_varint(at, ATTR_STRING << 3 | BYTES);
  at = write_varint(at, length);
  memcpy(at, text, length);
  set_value(node, name, value, (size_t)(at - value) + length);
}

void set_int_list_attr(Node* node, const char* name, const int64_t* values, int count) {
  uint8_t list[256], *at = list;
  for (int i = 0; i < count && at < list + sizeof list - 16; i++) {
    at = write_varint(at, LIST_INT << 3 | VARINT);
    at = write_varint(at, (uint64_t)values[i]);
  }
  uint8_t value[272], *end = value;
  end = write_varint(end, ATTR_LIST << 3 | BYTES);
  end = write_varint(end, (uint64_t)(at - list));
  memcpy(end, list, (size_t)(at - list));
  set_value(node, name, value, (size_t)(end - value) + (size_t)(at - list));
}
