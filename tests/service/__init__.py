"""Tests of one service, in process or shared by a file, with real model processes."""
