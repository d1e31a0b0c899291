package tests

val downloads: Map<String, Check> = mapOf()

val rooms: Map<String, Check> = mapOf()
